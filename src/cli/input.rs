//! What the user says: flags, files, stdin, and llama-cli's escapes.

use std::io::{IsTerminal, Read};
use std::path::Path;

use anyhow::{Context, bail};

use super::chat::ConversationArgs;

/// The first thing said, if flags, a file or a redirected stdin say it.
pub fn first_prompt(args: &ConversationArgs) -> anyhow::Result<Option<String>> {
    if args.simple_io && args.prompt.is_none() && args.file.is_none() {
        return Ok(None);
    }
    text(args.prompt.as_deref(), args.file.as_deref())
}

/// The text of `-p`, of `-f`, or of a redirected stdin.
pub fn text(prompt: Option<&str>, file: Option<&Path>) -> anyhow::Result<Option<String>> {
    if let Some(prompt) = prompt {
        return Ok(Some(unescape(prompt)));
    }
    if let Some(path) = file {
        return read_text(path).map(Some);
    }
    if std::io::stdin().is_terminal() {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    std::io::stdin().read_to_end(&mut bytes).context("cannot read stdin")?;
    if bytes.is_empty() {
        bail!("nothing to answer: stdin is empty; give a prompt with -p, -f or on stdin");
    }
    without_break(bytes, "stdin").map(Some)
}

/// The system prompt, if there is one.
pub fn system_prompt(args: &ConversationArgs) -> anyhow::Result<Option<String>> {
    match (&args.system_prompt, &args.system_prompt_file) {
        (Some(prompt), _) => Ok(Some(unescape(prompt))),
        (None, Some(path)) => read_text(path).map(Some),
        (None, None) => Ok(None),
    }
}

/// All bytes of a file, or of stdin where it is `-`.
pub fn read_bytes(path: &Path) -> anyhow::Result<Vec<u8>> {
    if path.as_os_str() == "-" {
        let mut bytes = Vec::new();
        std::io::stdin().read_to_end(&mut bytes).context("cannot read stdin")?;
        return Ok(bytes);
    }
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// The text of a file, or of stdin where it is `-`, without the line break at its end.
pub fn text_of(path: &Path) -> anyhow::Result<String> {
    without_break(read_bytes(path)?, &path.display().to_string())
}

/// A text file without the line break at its end.
pub fn read_text(path: &Path) -> anyhow::Result<String> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    without_break(bytes, &path.display().to_string())
}

/// Bytes as text, without the line break at its end.
fn without_break(bytes: Vec<u8>, from: &str) -> anyhow::Result<String> {
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        anyhow::anyhow!("{from}: expected UTF-8 text, found an invalid byte at offset {at}; convert it with iconv")
    })?;
    Ok(text.strip_suffix('\n').unwrap_or(&text).to_owned())
}

/// llama-cli's escapes in `-p`: `\n`, `\r`, `\t`, `\'`, `\"`, `\\` and `\xHH`; any other backslash stays.
pub fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let hex = rest.strip_prefix('x').and_then(|hex| hex.get(..2)).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        let known = [('n', '\n'), ('r', '\r'), ('t', '\t'), ('\'', '\''), ('"', '"'), ('\\', '\\')];
        if let Some((letter, meant)) = known.iter().find(|(letter, _)| rest.starts_with(*letter)) {
            out.push(*meant);
            rest = &rest[letter.len_utf8()..];
        } else if let Some(byte) = hex.filter(u8::is_ascii) {
            out.push(byte as char);
            rest = &rest[3..];
        } else {
            out.push('\\');
        }
    }
    out.push_str(rest);
    out
}

/// `--chat-template-kwargs`.
pub fn template_kwargs(json: Option<&str>) -> anyhow::Result<serde_json::Map<String, serde_json::Value>> {
    let Some(json) = json else { return Ok(serde_json::Map::new()) };
    match serde_json::from_str(json) {
        Ok(serde_json::Value::Object(object)) => Ok(object),
        Ok(other) => bail!("--chat-template-kwargs: expected a JSON object, found `{other}`"),
        Err(error) => bail!("--chat-template-kwargs: expected a JSON object, found `{json}`: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_as_llama_cli() {
        assert_eq!(unescape(r"a\nb\t\x41 \\ \frac{1}{2} \q"), "a\nb\tA \\ \\frac{1}{2} \\q");
        assert_eq!(unescape(r"ends\"), "ends\\");
        assert_eq!(unescape(r"\xé1"), r"\xé1");
    }

    #[test]
    fn kwargs_must_be_an_object() {
        assert!(template_kwargs(Some(r#"{"enable_thinking": false}"#)).unwrap().contains_key("enable_thinking"));
        assert!(template_kwargs(Some("[1]")).is_err());
        assert!(template_kwargs(Some("{")).is_err());
    }
}
