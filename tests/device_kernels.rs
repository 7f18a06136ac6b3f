//! StepFlow by the CUDA kernels inside running models, on a device that refuses host access: the outcome is the host's.

mod double;
mod mixed;
mod offload;
mod shim;
mod tiny;

#[test]
fn kernels_on_the_device_give_what_the_host_gives() {
    double::register("CUDA").provide("CUDA");
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
