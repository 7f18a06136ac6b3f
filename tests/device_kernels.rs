//! StepFlow by the CUDA kernels inside running models, on a device that refuses host access: the outcome is the host's.

mod double;
mod mixed;
mod offload;
mod shim;
mod tiny;

#[test]
fn kernels_on_the_device_give_what_the_host_gives() {
    double::register("CUDA").provide("CUDA");
    on_the_softmax();
    in_flash_attention();
}

/// By our own kernel for flash attention there.
fn in_flash_attention() {
    // Caches in F32 round nothing, so this is F32 in another order, through eight layers: 2.4e-6. Gemma's windows leave next to
    // nothing of the bridged segment in some rows, of which OEB makes its floor: 8.6e-4, and 7.1e-4 between the softmax there
    // and here.
    let tolerance = |arch| if arch == tiny::Arch::Gemma3 { 2e-3 } else { 1e-5 };
    let exact = tiny::Arch::ALL.into_iter().map(|arch| (arch, "f32", true, tolerance(arch)));
    // Where a last bit falls to the other side as a key is stored, it makes a step of its type: up to 4.8e-3 for Q8_0, 2.2e-2
    // for Q4_0. And llama.cpp's own flash attention, which rows of the question and of other layers go through, adds up in
    // 16-bit floats: 3.4e-3.
    let steps = [
        (tiny::Arch::Qwen3, "q8_0", true, 2e-2),
        (tiny::Arch::Qwen3, "q4_0", false, 5e-2),
        (tiny::Arch::GptOss, "f16", false, 1e-2),
    ];
    for (index, (arch, cache, all, tolerance)) in exact.chain(steps).enumerate() {
        let path = offload::model(arch);
        let case @ (n_gpu_layers, streams) = offload::CASES[1..][index % 3];
        let what = format!("{arch:?}, {n_gpu_layers} layers offloaded, streams {streams}, {cache}");
        let [host, there] = [(0, streams), case].map(|case| offload::run_fused(&path, case, cache, all));
        offload::assert_same_repairs(&host, &there, if cache == "f32" { 0.0 } else { 2e-2 });
        let difference = offload::difference(&host, &there);
        assert!(difference <= tolerance, "{what}: {difference}");
        let used = offload::kernels_of(&there);
        assert!(used.contains("cuda") && !used.contains("read-back") && !used.contains("host"), "{what}: {used:?}");
        assert_eq!(used.contains("fused"), n_gpu_layers < 9, "{what}: {used:?}");
    }
}

fn on_the_softmax() {
    for arch in tiny::Arch::ALL {
        let path = offload::model(arch);
        for case @ (n_gpu_layers, streams) in offload::CASES {
            let host = offload::on_host(&path, streams);
            let there = offload::run(&path, case, |repair| Some(Box::new(repair)));
            offload::assert_same_repairs(&host, &there, 0.0);
            let difference = offload::difference(&host, &there);
            // The kernels add in F32 in another order; 2e-6 in a probability has become this much in a logit.
            assert!(difference <= 2e-4, "{arch:?}, {n_gpu_layers} layers offloaded, streams {streams}: {difference}");
            let used = offload::kernels_of(&there);
            assert!(used.contains("cuda") && !used.contains("read-back"), "{arch:?}: {used:?}");
            assert_eq!(used.contains("host"), n_gpu_layers < 9, "{arch:?}: {used:?}");
        }
    }
    for arch in [tiny::Arch::Qwen3, tiny::Arch::GptOss] {
        let path = offload::model(arch);
        for case @ (_, streams) in [(8, false), (99, true)] {
            let [host, there] = [(0, streams), case].map(|case| mixed::mixed(&path, case));
            let difference = mixed::difference(&host, &there);
            // As above, and less: caches in F32 round nothing. 2.5e-6 was seen.
            assert!(difference <= 1e-5, "{arch:?}, {case:?}, mixed settings: {difference}");
            assert_eq!(mixed::counts(&host), mixed::counts(&there), "{arch:?}, {case:?}");
        }
        let [host, there] = [0, 99].map(|n_gpu_layers| offload::probes(&path, n_gpu_layers));
        let largest = host.iter().fold(0.0, |largest: f64, value| largest.max(value.abs()));
        assert!(largest > 0.0 && host.len() == there.len(), "{arch:?}: {host:?}");
        for (host, there) in host.iter().zip(&there) {
            // Differences of losses in F32, of which each side has its own noise.
            assert!((host - there).abs() <= 0.02 * largest, "{arch:?}: {there} for {host}, of up to {largest}");
        }
    }
}
