//! A small vocabulary of our own: one token for each byte, merges that spell a few words, and special tokens.

use stepflow::gguf::GgufWriter;

use super::Arch;

/// The words the merges spell; each becomes one token.
const WORDS: [&str; 24] = [
    " the",
    " of",
    " and",
    " is",
    " to",
    " in",
    " we",
    " so",
    " step",
    " answer",
    " number",
    " add",
    " then",
    " first",
    " next",
    " wait",
    "The",
    "Let",
    "First",
    "Then",
    "user",
    "assistant",
    "system",
    "\n\n",
];

/// Kinds of tokens in `tokenizer.ggml.token_type`.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;

/// Opens the assistant's turn with a thought, as reasoning models do.
const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] \
+ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}";

/// The form of gpt-oss: an answer is in the channel `final`, and the model names its channel itself.
const HARMONY: &str = "{% for message in messages %}{{ '<|start|>' + message['role'] }}\
{% if message['role'] == 'assistant' %}{{ '<|channel|>final' }}{% endif %}\
{{ '<|message|>' + message['content'] + '<|end|>' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}";

/// Special tokens with their kinds; the first begins a text and the second ends an answer.
fn special(arch: Arch) -> Vec<(&'static str, i32)> {
    match arch {
        Arch::GptOss => vec![
            ("<|startoftext|>", CONTROL),
            ("<|return|>", CONTROL),
            ("<|start|>", CONTROL),
            ("<|end|>", CONTROL),
            ("<|channel|>", CONTROL),
            ("<|message|>", CONTROL),
            // Without it llama.cpp takes `<|end|>` for the end of an answer.
            ("<|call|>", CONTROL),
        ],
        _ => vec![
            ("<|endoftext|>", CONTROL),
            ("<|im_end|>", CONTROL),
            ("<|im_start|>", CONTROL),
            ("<think>", USER_DEFINED),
            ("</think>", USER_DEFINED),
        ],
    }
}

/// All tokens, in the order of their ids.
pub fn tokens(arch: Arch) -> Vec<String> {
    let bytes = (0..=255).map(|byte| visible(byte).to_string());
    let merged = merges().into_iter().map(|(left, right)| left + &right);
    let special = special(arch).into_iter().map(|(text, _)| text.to_owned());
    bytes.chain(merged).chain(special).collect()
}

/// Writes tokens, merges and chat template.
pub fn write(arch: Arch, out: &mut GgufWriter) {
    let tokens = tokens(arch);
    let special = special(arch);
    let plain = tokens.len() - special.len();
    let kinds: Vec<i32> = std::iter::repeat_n(NORMAL, plain).chain(special.iter().map(|(_, kind)| *kind)).collect();
    let merges: Vec<String> = merges().into_iter().map(|(left, right)| format!("{left} {right}")).collect();
    let pre = match arch {
        Arch::Llama | Arch::Mixtral | Arch::Deepseek2 | Arch::Deepseek32 | Arch::Mamba => "llama-bpe",
        Arch::Qwen2 | Arch::Qwen3 | Arch::Qwen3Moe => "qwen2",
        Arch::GptOss => "gpt-4o",
        Arch::Gemma2 | Arch::Gemma3 => "gpt-2",
    };
    let template = if arch == Arch::GptOss { HARMONY } else { CHATML };
    out.metadata("tokenizer.ggml.model", "gpt2").unwrap();
    out.metadata("tokenizer.ggml.pre", pre).unwrap();
    out.metadata("tokenizer.ggml.tokens", tokens).unwrap();
    out.metadata("tokenizer.ggml.token_type", kinds).unwrap();
    out.metadata("tokenizer.ggml.merges", merges).unwrap();
    out.metadata("tokenizer.ggml.bos_token_id", plain as u32).unwrap();
    out.metadata("tokenizer.ggml.eos_token_id", plain as u32 + 1).unwrap();
    out.metadata("tokenizer.ggml.add_bos_token", false).unwrap();
    out.metadata("tokenizer.chat_template", template).unwrap();
}

/// Merges that build each word from the left, each merge once.
fn merges() -> Vec<(String, String)> {
    let mut merges = Vec::new();
    for word in WORDS {
        let mut letters = word.bytes().map(|byte| visible(byte).to_string());
        let mut left = letters.next().unwrap();
        for right in letters {
            let merge = (left.clone(), right.clone());
            left += &right;
            if !merges.contains(&merge) {
                merges.push(merge);
            }
        }
    }
    merges
}

/// The character that stands for a byte in GPT-2's byte-level vocabularies: itself where it is printable, and the
/// characters from U+0100 on for the rest in their order.
fn visible(byte: u8) -> char {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let rank = (0..byte).filter(|earlier| !printable(*earlier)).count() as u32;
    char::from_u32(0x100 + rank).unwrap()
}
