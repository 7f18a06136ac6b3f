//! StepFlow on a device that there are no kernels for: the data is read back, and the outcome is the host's.

mod double;
mod mixed;
mod offload;
mod shim;
mod tiny;

#[test]
fn read_back_gives_what_the_host_gives() {
    double::register("Elsewhere");
    for arch in tiny::Arch::ALL {
        let path = offload::model(arch);
        for case @ (n_gpu_layers, streams) in offload::CASES {
            let host = offload::on_host(&path, streams);
            let there = offload::run(&path, case, |repair| Some(Box::new(repair)));
            offload::assert_same_repairs(&host, &there, 0.0);
            // The double computes as the host does, and what is read back is changed by the same code.
            assert_eq!(
                offload::difference(&host, &there),
                0.0,
                "{arch:?}, {n_gpu_layers} layers offloaded, streams {streams}"
            );
            let used = offload::kernels_of(&there);
            assert!(used.contains("read-back"), "{arch:?}: {used:?}");
            assert_eq!(used.contains("host"), n_gpu_layers < 9, "{arch:?}: {used:?}");
        }
    }
    for arch in [tiny::Arch::Qwen3, tiny::Arch::GptOss] {
        let path = offload::model(arch);
        for case @ (_, streams) in [(8, false), (99, true)] {
            let [host, there] = [(0, streams), case].map(|case| mixed::mixed(&path, case));
            assert_eq!(mixed::difference(&host, &there), 0.0, "{arch:?}, {case:?}, mixed settings");
            assert_eq!(mixed::counts(&host), mixed::counts(&there), "{arch:?}, {case:?}");
        }
    }
}
