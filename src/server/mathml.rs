//! A formula in LaTeX as MathML, of which only known tags and attributes are passed on, with characters in place of
//! `mathvariant`s that browsers no longer know (MathML Core).

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::LazyLock;

use katex::types::{OutputFormat, StrictMode, StrictSetting};
use katex::{KatexContext, Settings, render_to_string};

/// Bytes of a formula; what is longer stays LaTeX.
const MAX_BYTES: usize = 4000;

/// Groups within groups.
const MAX_DEPTH: usize = 50;

/// Size that a formula can ask for, in em.
const MAX_SIZE: f64 = 20.0;

/// Commands that define others: a few of them make a formula of any length.
const DEFINITIONS: [&str; 9] =
    ["def", "gdef", "edef", "xdef", "let", "futurelet", "newcommand", "renewcommand", "providecommand"];

const TAGS: &str = " math semantics mrow mi mn mo mtext mspace mstyle mfrac msqrt mroot msub msup msubsup munder mover \
    munderover mtable mtr mtd mlabeledtr mpadded mphantom menclose mmultiscripts mprescripts none mglyph ";

const ATTRIBUTES: &str = " display displaystyle scriptlevel mathvariant stretchy fence separator lspace rspace minsize maxsize \
    symmetric movablelimits largeop accent accentunder linethickness columnalign columnspacing rowspacing columnlines \
    rowlines width height depth voffset notation mathcolor mathbackground mathsize side linebreak align ";

/// `latex` as a `<math>`; `None` if it is no LaTeX, or too much of it.
pub fn from_latex(latex: &str, display: bool) -> Option<String> {
    static CONTEXT: LazyLock<KatexContext> = LazyLock::new(KatexContext::default);
    if latex.len() > MAX_BYTES || depth(latex) > MAX_DEPTH || defines(latex) {
        return None;
    }
    let settings = Settings::builder()
        .output(OutputFormat::Mathml)
        .display_mode(display)
        .strict(StrictSetting::Mode(StrictMode::Ignore))
        .max_size(MAX_SIZE)
        .build();
    // A mistake of the library's costs one formula.
    let rendered = catch_unwind(AssertUnwindSafe(|| render_to_string(&CONTEXT, latex, &settings)));
    let html = rendered.ok()?.ok()?;
    let (start, end) = (html.find("<math")?, html.find("<annotation")?);
    Some(filtered(&html[start..end])? + "</semantics></math>")
}

/// How deeply groups are nested, at most.
fn depth(latex: &str) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    for (at, byte) in latex.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' => depth = depth.saturating_sub(1),
            b'\\' if latex[at..].starts_with("\\left") => depth += 1,
            b'\\' if latex[at..].starts_with("\\right") => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

fn defines(latex: &str) -> bool {
    let commands = latex.split('\\').skip(1);
    commands
        .map(|rest| rest.split(|c: char| !c.is_ascii_alphabetic()).next())
        .any(|name| name.is_some_and(|name| DEFINITIONS.contains(&name)))
}

/// Markup with known tags and attributes alone; `None` if another tag is in it.
fn filtered(markup: &str) -> Option<String> {
    let mut out = String::with_capacity(markup.len());
    for piece in markup.split('<').skip(1) {
        let (tag, text) = match piece.split_once('>')? {
            // Lines over and under a formula, which few fonts stretch, are the page's style to draw.
            ("mo stretchy=\"true\"", "\u{203E}") => ("mo notation=\"line\"", ""),
            // A combining arrow is drawn beside its place.
            (tag, "\u{20D7}") => (tag, "→"),
            other => other,
        };
        out.push('<');
        let variant = match tag.strip_prefix('/') {
            Some(name) => {
                is_word_of(TAGS, name).then(|| out.push_str(tag))?;
                ""
            }
            None => opened(tag, &mut out)?,
        };
        out.push('>');
        match letter(text, variant) {
            Some(letter) => out.push(letter),
            None => out.push_str(text),
        }
    }
    Some(out)
}

/// Writes an opening tag, and returns the variant of the letters in it.
fn opened<'a>(tag: &'a str, out: &mut String) -> Option<&'a str> {
    let (tag, slash) = tag.strip_suffix('/').map_or((tag, ""), |tag| (tag, "/"));
    let (name, mut rest) = tag.split_once(' ').unwrap_or((tag, ""));
    is_word_of(TAGS, name).then(|| out.push_str(name))?;
    let mut variant = "";
    while let Some((attribute, after)) = rest.trim_start().split_once("=\"") {
        let (value, after) = after.split_once('"')?;
        rest = after;
        if attribute == "mathvariant" {
            variant = value;
        }
        if is_word_of(ATTRIBUTES, attribute) {
            out.push_str(&format!(" {attribute}=\"{value}\""));
        }
    }
    out.push_str(slash);
    Some(variant)
}

/// Whether an opening or a closing tag is one that comes from here.
#[cfg(test)]
pub fn is_tag(tag: &str) -> bool {
    filtered(&format!("<{tag}>")).is_some_and(|same| same == format!("<{tag}>"))
}

fn is_word_of(words: &str, name: &str) -> bool {
    !name.is_empty() && !name.contains(' ') && words.contains(&format!(" {name} "))
}

/// A single capital letter in a variant that has characters of its own.
fn letter(text: &str, variant: &str) -> Option<char> {
    let mut letters = text.chars();
    let (letter, None) = (letters.next()?, letters.next()) else { return None };
    let index = (letter as u32).checked_sub('A' as u32).filter(|&index| index < 26)?;
    // The first of a row of 26, and those that had a place before it was made.
    let (first, elsewhere) = match variant {
        "double-struck" => (0x1D538, "Cℂ Hℍ Nℕ Pℙ Qℚ Rℝ Zℤ"),
        "script" => (0x1D49C, "Bℬ Eℰ Fℱ Hℋ Iℐ Lℒ Mℳ Rℛ"),
        "fraktur" => (0x1D504, "Cℭ Hℌ Iℑ Rℜ Zℨ"),
        _ => return None,
    };
    let known = elsewhere.split(' ').find_map(|pair| pair.strip_prefix(letter)?.chars().next());
    known.or_else(|| char::from_u32(first + index))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_models_write_is_rendered() {
        for latex in [
            "\\boxed{42}",
            "\\boxed{\\text{A}}",
            "a < b > c",
            "\\frac{1}{2} \\cdot \\sqrt[3]{8}",
            "\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}",
            "f(x) = \\begin{cases} 1 & x > 0 \\\\ 0 & \\text{otherwise} \\end{cases}",
            "\\left\\{ x \\in \\mathbb{R} \\mid x \\le 0 \\right\\}",
            "\\sum_{i=1}^n i^2 \\implies \\int_0^1 f'(x)\\,dx",
            "\\text{50\\% of \\$5}",
            "\\underbrace{a+b}_{n} \\overline{AB} \\vec{v} \\hat{x}",
            "90^\\circ \\angle ABC \\cong \\triangle DEF",
            "a \\equiv b \\pmod{7}",
            "\\begin{array}{|c|c|} \\hline 1 & 2 \\\\ \\hline \\end{array}",
            "\\cancel{x} \\xrightarrow{f} \\operatorname{lcm}(a, b) \\binom{n}{k}",
            "\\color{red}{x} \\textbf{Answer} \\quad \\ldots",
            "x = 中 + é",
        ] {
            let math = from_latex(latex, false).unwrap_or_else(|| panic!("{latex}"));
            assert!(math.starts_with("<math>") && math.ends_with("</math>"), "{latex}: {math}");
        }
        for latex in
            ["\\begin{align*} a &= b \\\\ &= c \\end{align*}", "\\begin{gather} a \\\\ b \\end{gather}", "x \\tag{1}"]
        {
            assert!(from_latex(latex, true).unwrap().starts_with("<math display=\"block\">"), "{latex}");
        }
        assert!(from_latex("\\mathbb{R} \\mathcal{A} \\mathfrak{g}", false).unwrap().contains('ℝ'));
        assert!(from_latex("\\overline{AB}", false).unwrap().contains("<mo notation=\"line\"></mo>"));
        assert!(from_latex("\\vec{v}", false).unwrap().contains("<mo>→</mo>"));
    }

    #[test]
    fn what_is_broken_or_too_much_is_none() {
        let deep = format!("{}x{}", "{".repeat(60), "}".repeat(60));
        let long = "x+".repeat(3000);
        for latex in [
            "\\frac{1",
            "\\foo",
            "x^2^3",
            "a & b",
            "\\left( x",
            "}",
            "\\def\\a{\\a\\a}\\a",
            "\\newcommand{\\a}{b} \\a",
            &deep,
            &long,
        ] {
            assert_eq!(from_latex(latex, false), None, "{latex}");
        }
    }

    #[test]
    fn nothing_of_the_text_becomes_markup() {
        for latex in [
            "\\text{<img src=x onerror=alert(1)>}",
            "\\text{\"' onload=\"alert(1)}",
            "\\href{javascript:alert(1)}{x}",
            "\\url{javascript:alert(1)}",
            "\\htmlClass{a}{x} \\htmlStyle{color: red}{x} \\htmlData{a=b}{x}",
            "\\includegraphics[alt=x]{http://a.b/c.png}",
            "</math><script>alert(1)</script>",
            "\\color{#fff\" onload=\"x}{y}",
            "\\class{a}{x} \\style{a}{x} \\cssId{a}{x}",
            "\\rule{1000em}{1000em}",
        ] {
            for math in [false, true].into_iter().filter_map(|display| from_latex(latex, display)) {
                let lower = math.to_lowercase();
                let is_free =
                    ["<img", "<script", "<a ", " href", " src=", " style=", " class=", " onload=\"", "1000em"];
                assert!(is_free.iter().all(|part| !lower.contains(part)), "{latex}: {math}");
            }
        }
    }

    proptest! {
        /// Whatever it is, it is markup of known tags or none.
        #[test]
        fn anything(latex in "(\\\\[a-z]{1,8}|\\\\(frac|text|left|right|begin\\{matrix\\}|end\\{matrix\\}|mathbb)|[a-z0-9{}^_&<>\"'=/ \\\\]|\u{e9}){0,30}", display: bool) {
            if let Some(math) = from_latex(&latex, display) {
                prop_assert_eq!(filtered(&math), Some(math));
            }
        }
    }
}
