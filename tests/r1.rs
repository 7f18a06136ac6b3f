//! The vocabulary and template of DeepSeek-R1-Distill-Qwen: family, markers and template of a model people use.
//! They are not ours to ship: STEPFLOW_R1_VOCAB names a GGUF that has them (any R1-Distill-Qwen model will do).

mod common;

use stepflow::engine::{Message, Prompt};
use stepflow::gguf::Gguf;
use stepflow::llama::chat::{ChatInput, ChatTemplates};
use stepflow::trace::{Family, Segment, Tracker};

fn r1() -> Option<Gguf> {
    let Some(path) = std::env::var_os("STEPFLOW_R1_VOCAB") else {
        common::skip("STEPFLOW_R1_VOCAB names no GGUF of DeepSeek-R1-Distill-Qwen");
        return None;
    };
    Some(Gguf::open(path).unwrap())
}

#[test]
fn r1_thinks_in_tags() {
    let Some(r1) = r1() else { return };
    let tokens = r1.tokens().unwrap();
    let has_token = |text: &str| tokens.iter().any(|token| token == text);
    let family = Family::detect(has_token, r1.chat_template()).unwrap();
    assert_eq!(family, Family::ThinkTags);

    let text = |key: &str| tokens[r1.u64(key).unwrap() as usize].clone();
    let (bos, eos) = (text("tokenizer.ggml.bos_token_id"), text("tokenizer.ggml.eos_token_id"));
    let templates = ChatTemplates::from_source(r1.chat_template().unwrap(), &bos, &eos).unwrap();
    let earlier = Message { reasoning_content: None, ..Message::new("assistant", "<think>\nHm.\n</think>\n\nHello.") };
    let messages = [Message::new("user", "Hi"), earlier, Message::new("user", "2 + 2?")];
    let input = ChatInput { messages: serde_json::json!(messages), ..ChatInput::default() };
    let prompt = Prompt::from(&templates.apply(&input).unwrap());
    assert_eq!(
        prompt.conversation,
        "<｜begin▁of▁sentence｜><｜User｜>Hi<｜Assistant｜>\n\nHello.<｜end▁of▁sentence｜><｜User｜>2 + 2?"
    );
    // The first template of these models leaves it to the model to open its thinking, a later one does it itself.
    let opened = prompt.opening.ends_with("<think>\n");
    assert!(opened || prompt.opening == "<｜Assistant｜>", "{}", prompt.opening);

    let mut tracker = Tracker::new(family.markers());
    tracker.push(prompt.conversation.as_bytes(), false);
    tracker.push(prompt.opening.as_bytes(), false);
    if !opened {
        assert_eq!(tracker.push("<think>".as_bytes(), true).segment, Segment::Question);
    }
    let pieces = ["I add two and two.", " It is 4.", "</think>", "\n\n4"];
    let segments = pieces.map(|piece| tracker.push(piece.as_bytes(), true).segment);
    assert_eq!(segments, [Segment::Thinking, Segment::Thinking, Segment::Thinking, Segment::Summary]);
}
