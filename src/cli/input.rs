//! What the user says: flags, files, stdin, and llama-cli's escapes.

use std::io::{IsTerminal, Read};
use std::path::Path;

use anyhow::{Context, bail};

/// LaTeX commands that begin like an escape.
const LATEX: &str = "nabla natural ncong ne nearrow neg negmedspace negthickspace negthinspace neq newcommand newline \
    nexists ngeq ngeqq ngtr ni nleftarrow nleftrightarrow nleq nleqq nless nmid nobreak node noindent nolimits nolinebreak \
    nonumber normalfont normalsize not notag notin nparallel nprec npreceq nrightarrow nsim nsubseteq nsucc nsucceq \
    nsupseteq ntriangleleft ntriangleright nu num nvdash nwarrow \
    raggedright raise rangle rbrace rbrack rceil real ref relax renewcommand restriction rfloor rgroup rhd rho right \
    rightarrow rightarrowtail rightharpoondown rightharpoonup rightleftarrows rightleftharpoons rightrightarrows \
    rightsquigarrow rightthreetimes risingdotseq rm rmfamily roman root rotatebox row rparen rtimes rule rvert \
    tabular tag tan tanh tau tbinom tfrac text textasciitilde textbackslash textbf textcircled textcolor textdegree \
    textit textmd textnormal textrm textsc textsf textsl textstyle textsubscript textsuperscript texttt textup \
    textwidth tfrac thanks theorem therefore theta thickapprox thicksim thickspace thinspace tilde times tiny title to \
    today top triangle triangledown triangleleft trianglelefteq triangleq triangleright trianglerighteq tt ttfamily \
    twoheadleftarrow twoheadrightarrow \
    xcancel xi xhookleftarrow xhookrightarrow xleftarrow xmapsto xrightarrow";

/// The text of `-p`, of `-f`, or of a redirected stdin.
pub fn text(prompt: Option<String>, file: Option<&Path>) -> anyhow::Result<Option<String>> {
    if prompt.is_some() {
        return Ok(prompt);
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
    decoded(bytes, "stdin").map(Some)
}

/// The text of a file, or of stdin where it is `-`, as [`read_text`] reads it.
pub fn text_of(path: &Path) -> anyhow::Result<String> {
    if path.as_os_str() == "-" {
        let mut bytes = Vec::new();
        std::io::stdin().read_to_end(&mut bytes).context("cannot read stdin")?;
        return decoded(bytes, "stdin");
    }
    read_text(path)
}

/// A text file, without what editors on Windows add to it: a byte-order mark, UTF-16, and the carriage return before every
/// line break. Nor does the line break at its end belong to the text.
pub fn read_text(path: &Path) -> anyhow::Result<String> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    decoded(bytes, &path.display().to_string())
}

fn decoded(bytes: Vec<u8>, from: &str) -> anyhow::Result<String> {
    let text = match bytes.as_slice() {
        [0xFF, 0xFE, units @ ..] => utf16(units, u16::from_le_bytes, from)?,
        [0xFE, 0xFF, units @ ..] => utf16(units, u16::from_be_bytes, from)?,
        _ => String::from_utf8(bytes).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            anyhow::anyhow!("{from}: expected UTF-8 text, found an invalid byte at offset {at}; convert it with iconv")
        })?,
    };
    let text = text.strip_prefix('\u{FEFF}').unwrap_or(&text).replace("\r\n", "\n");
    Ok(text.strip_suffix('\n').unwrap_or(&text).to_owned())
}

fn utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16, from: &str) -> anyhow::Result<String> {
    let (units, rest) = bytes.as_chunks::<2>();
    let units: Vec<u16> = units.iter().map(|bytes| unit(*bytes)).collect();
    match String::from_utf16(&units) {
        Ok(text) if rest.is_empty() => Ok(text),
        _ => bail!("{from}: expected text in UTF-16, as its mark says, found what is none; convert it with iconv"),
    }
}

/// llama-cli's escapes in `-p`: `\n`, `\r`, `\t`, `\'`, `\"`, `\\` and `\xHH`; any other backslash stays, and so does one
/// that begins a command of LaTeX, such as `\theta`, `\neq` or `\text{`.
pub fn unescape(text: &str) -> String {
    // In a matrix, two backslashes end a row.
    let has_rows = text.contains("\\begin{");
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let hex = rest.strip_prefix('x').and_then(|hex| hex.get(..2)).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        let known = [('n', '\n'), ('r', '\r'), ('t', '\t'), ('\'', '\''), ('"', '"'), ('\\', '\\')];
        if is_latex(rest) {
            out.push('\\');
        } else if has_rows && rest.starts_with('\\') && !rest[1..].starts_with(|c: char| c.is_ascii_alphabetic()) {
            out.push_str("\\\\");
            rest = &rest[1..];
        } else if let Some((letter, meant)) = known.iter().find(|(letter, _)| rest.starts_with(*letter)) {
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

/// Whether what follows a backslash is a command of LaTeX, and more than an escape.
fn is_latex(rest: &str) -> bool {
    let end = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
    let (word, after) = rest.split_at(end);
    word.len() > 1 && (after.starts_with('{') || LATEX.split_ascii_whitespace().any(|command| command == word))
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
        assert_eq!(unescape(r"Line one\nLine two\n\nnext\tcell\r\n"), "Line one\nLine two\n\nnext\tcell\r\n");
        assert_eq!(unescape(r"\\n and \\theta"), r"\n and \theta");
    }

    #[test]
    fn latex_is_left_alone() {
        for text in [
            r"Let $\theta$ satisfy $2\times\rho$",
            r"$\nabla f \neq 0$, $\tan x$, \tau, \nu",
            r"\text{if } x \to 0, \right) \rangle \triangle ABC",
            r"\newtheorem{a}{b} \tikzpicture{x} \xrightarrow{f} \xi \xcancel{5}",
            r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \\[2pt] 5 & 6 \end{pmatrix}",
            r"\ne \ni \not\in \notin \rm x \top \tfrac12 \rho^2 \theta_1",
        ] {
            assert_eq!(unescape(text), text);
        }
    }

    #[test]
    fn marks_of_windows_are_no_text() {
        let read = |bytes: &[u8]| decoded(bytes.to_vec(), "file");
        assert_eq!(read(b"\xEF\xBB\xBFa\r\nb\r\n").unwrap(), "a\nb");
        assert_eq!(read(b"a\n").unwrap(), "a");
        assert_eq!(read(b"a\r\n\r\n").unwrap(), "a\n");
        assert_eq!(read(b"\xFF\xFEa\0\r\0\n\0\xAC\x20\r\0\n\0").unwrap(), "a\n€");
        assert_eq!(read(b"\xFE\xFF\0a\x20\xAC").unwrap(), "a€");
        assert_eq!(read("a\u{FEFF}b\rc".as_bytes()).unwrap(), "a\u{FEFF}b\rc");
        for broken in [b"\xFF\xFEa".as_slice(), b"\xFF\xFE\0\xD8", b"a\xFF"] {
            let error = read(broken).unwrap_err().to_string();
            assert!(error.starts_with("file: expected") && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn kwargs_must_be_an_object() {
        assert!(template_kwargs(Some(r#"{"enable_thinking": false}"#)).unwrap().contains_key("enable_thinking"));
        assert!(template_kwargs(Some("[1]")).is_err());
        assert!(template_kwargs(Some("{")).is_err());
    }
}
