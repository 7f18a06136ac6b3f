//! A batch of sequences with different settings: each is treated by its own, and is what it is where all have the same.

mod mixed;
mod tiny;

use stepflow::engine::Repair;
use stepflow::llama::{Hook, Point};
use stepflow::stepflow::{Kernels, StepFlowConfig};
use tiny::{Arch, WeightType};

const LAYERS: usize = 8;
/// Of every tiny model.
const HEADS: u64 = 4;

#[test]
fn each_sequence_is_treated_by_its_own_settings() {
    for arch in Arch::ALL {
        let path = tiny::tiny(arch, WeightType::F32);
        for streams in [false, true] {
            let mixed = mixed::mixed(&path, (0, streams));
            for (i, config) in mixed::settings().iter().enumerate() {
                let uniform = mixed::run(&path, (0, streams), Some(config), &[]);
                for (sequence, logits) in mixed.logits.iter().enumerate() {
                    let what = format!("{arch:?}, streams {streams}: sequence {sequence}, settings {i}");
                    // Settings of another would be seen.
                    assert_eq!(mixed::same_bits(logits, &uniform.logits[sequence]), sequence == i, "{what}");
                }
                assert_eq!(mixed.stats[i], uniform.stats[i], "{arch:?}, streams {streams}: sequence {i}");
            }
            let plain = mixed::run(&path, (0, streams), None, &[]);
            let off = [&mixed, &plain].map(|run| &run.logits[mixed::OFF]);
            assert!(mixed::same_bits(off[0], off[1]), "{arch:?}, streams {streams}: off is as llama.cpp alone");
        }
    }
}

#[test]
fn statistics_of_a_sequence_count_what_its_settings_do() {
    let path = tiny::tiny(Arch::Qwen3, WeightType::F32);
    for streams in [false, true] {
        let run = mixed::mixed(&path, (0, streams));
        for (sequence, (config, stats)) in mixed::settings().iter().zip(&run.stats).enumerate() {
            let repair = Repair::new(config, LAYERS, 1).unwrap();
            let (oeb, smi) = (repair.oeb_layers(), repair.smi_layers());
            assert!(stats.layers.keys().eq(oeb.union(&smi)), "sequence {sequence}: {stats:?}");
            for (layer, stats) in &stats.layers {
                let seen = if oeb.contains(layer) { HEADS * mixed::thoughts(sequence) } else { 0 };
                let injections = if smi.contains(layer) { mixed::STARTS } else { 0 };
                assert_eq!((stats.rows_seen, stats.injections), (seen, injections), "{sequence}, layer {layer}");
                assert_eq!(stats.rows_bridged > 0, seen > 0, "{sequence}, layer {layer}");
                assert_eq!(stats.kernels, Some(Kernels::Host));
            }
        }
    }
}

#[test]
fn the_graph_stops_for_the_layers_of_the_sequences_in_the_batch() {
    let mut repair = Repair::new(&StepFlowConfig::default(), LAYERS, 1).unwrap();
    let control = repair.control();
    let settings = mixed::settings();
    for (sequence, config) in settings.iter().enumerate() {
        control.configure_sequence(sequence as u32, config).unwrap();
    }
    let stops = |repair: &mut Repair, sequences: &[usize]| {
        let starts = sequences.iter().map(|&sequence| mixed::start(sequence, 100));
        repair.begin(&starts.collect::<Vec<_>>());
        let layers = |point| (0..LAYERS).filter(|&layer| repair.wants(point, layer)).collect::<Vec<_>>();
        (layers(Point::Attention), layers(Point::HeadOutput))
    };
    assert_eq!(stops(&mut repair, &[mixed::OFF, 17]), (vec![], vec![]), "off, and the context's settings are off");
    assert_eq!(stops(&mut repair, &[0, mixed::OFF, 4]), (vec![0, 1, 2], vec![5, 6, 7]));
    assert_eq!(stops(&mut repair, &[2, 6]), (vec![0, 1, 2, 4], vec![3, 6]));
    control.configure(&settings[3]).unwrap();
    assert_eq!(stops(&mut repair, &[2, 17]), (vec![0, 1, 2], vec![5, 6, 7]), "own settings stay");
    let mut outside = settings[6].clone();
    outside.oeb.as_mut().unwrap().layers = "8".parse().unwrap();
    assert!(control.configure_sequence(2, &outside).unwrap_err().to_string().contains("0-7"));
    assert_eq!(stops(&mut repair, &[2]), (vec![0, 1, 2], vec![]), "refused settings change nothing");
    control.configure_sequence(2, &settings[6]).unwrap();
    assert_eq!(stops(&mut repair, &[2]), (vec![1, 4], vec![3, 6]), "other settings take hold");
    control.switch(false);
    assert_eq!(stops(&mut repair, &[0, 2, 17]), (vec![], vec![]), "the switch is for all");
}
