//! Segments and steps of a text, without any model: `cargo run --release --example 3_segment_trace`.

use stepflow::trace::{Family, Tracker};

fn main() {
    let prompt = "<|im_start|>user\nWhat is 6 * 7?<|im_end|>\n<|im_start|>assistant\n<think>\n";
    let reply = "I need to multiply six by seven. Six times seven is 42.\n</think>\n\nThe answer is 42.";
    let mut tracker = Tracker::new(Family::ThinkTags.markers());
    let mut pieces = Vec::new();
    for (text, generated) in [(prompt, false), (reply, true)] {
        // Any tokens do; here a token is a word with the space before it.
        for piece in text.split_inclusive('>').flat_map(|part| part.split_inclusive(['.', '\n'])) {
            tracker.push(piece.as_bytes(), generated);
            pieces.push(piece);
        }
    }
    for step in tracker.steps() {
        println!("{:9} {:?}", step.segment.to_string(), pieces[step.tokens].concat());
    }
}
