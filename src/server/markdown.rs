//! Markdown with LaTeX, as models write it, as HTML that has no tag and no attribute of the text's own: raw HTML is shown as
//! text, an image is a link to it, and a link leads to the web or to mail. Pure; takes time in proportion to the text.

use std::ops::Range;

use pulldown_cmark::{CodeBlockKind, CowStr, Event, Options, Parser, Tag, TagEnd, html};

use super::formulas::{self, Formula};
use super::mathml;

/// Stands before and after the number of a formula while Markdown is read.
const MARK: char = '\u{E000}';

/// The HTML of a text.
pub fn to_html(text: &str) -> String {
    let text = text.replace(MARK, "\u{FFFD}");
    let formulas = formulas::find(&text, &code(&text));
    let mut source = String::with_capacity(text.len());
    let mut end = 0;
    for (number, formula) in formulas.iter().enumerate() {
        source += &text[end..formula.whole.start];
        source += &format!("{MARK}{number}{MARK}");
        end = formula.whole.end;
    }
    source += &text[end..];
    let mut writer = Writer { text: &text, formulas: &formulas, in_code: false, links: Vec::new() };
    let mut out = String::new();
    html::push_html(&mut out, Parser::new_ext(&source, options()).flat_map(|event| writer.safe(event)));
    aligned(out)
}

/// The same, with cells aligned by an attribute: the page's policy allows no style in its text.
fn aligned(mut html: String) -> String {
    for (cell, side) in ["th", "td"].into_iter().flat_map(|cell| ["left", "center", "right"].map(|side| (cell, side))) {
        let styled = format!("<{cell} style=\"text-align: {side}\">");
        if html.contains(&styled) {
            html = html.replace(&styled, &format!("<{cell} align=\"{side}\">"));
        }
    }
    html
}

fn options() -> Options {
    Options::ENABLE_TABLES | Options::ENABLE_STRIKETHROUGH | Options::ENABLE_TASKLISTS
}

/// Where code is, in which nothing is a formula.
fn code(text: &str) -> Vec<Range<usize>> {
    let events = Parser::new_ext(text, options()).into_offset_iter();
    events
        .filter(|(event, _)| matches!(event, Event::Code(_) | Event::Start(Tag::CodeBlock(_))))
        .map(|(_, range)| range)
        .collect()
}

struct Writer<'a> {
    text: &'a str,
    formulas: &'a [Formula],
    in_code: bool,
    /// Of links and images that are open, whether an `a` was written.
    links: Vec<bool>,
}

impl Writer<'_> {
    /// What stands for an event of the parser's.
    fn safe<'e>(&mut self, event: Event<'e>) -> Vec<Event<'e>> {
        match event {
            Event::Text(text) if self.in_code => vec![Event::Text(self.restored(&text).into())],
            Event::Text(text) | Event::Html(text) | Event::InlineHtml(text) => self.with_formulas(&text),
            Event::Code(text) => vec![Event::Code(self.restored(&text).into())],
            Event::SoftBreak => vec![Event::HardBreak],
            Event::Start(tag) => self.start(tag),
            Event::End(TagEnd::Link | TagEnd::Image) => match self.links.pop() {
                Some(true) => vec![Event::InlineHtml("</a>".into())],
                _ => Vec::new(),
            },
            Event::End(TagEnd::HtmlBlock) => vec![Event::End(TagEnd::Paragraph)],
            Event::End(TagEnd::CodeBlock) => {
                self.in_code = false;
                vec![event]
            }
            event => vec![event],
        }
    }

    fn start<'e>(&mut self, tag: Tag<'e>) -> Vec<Event<'e>> {
        match tag {
            Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. } => self.link(&dest_url).into_iter().collect(),
            Tag::HtmlBlock => vec![Event::Start(Tag::Paragraph)],
            Tag::CodeBlock(_) => {
                self.in_code = true;
                vec![Event::Start(Tag::CodeBlock(CodeBlockKind::Indented))]
            }
            tag => vec![Event::Start(tag)],
        }
    }

    /// The opening of a link to a place that is none of the page's own.
    fn link<'e>(&mut self, address: &CowStr<'_>) -> Option<Event<'e>> {
        let address = self.restored(address);
        let scheme = address.split_once(':').map(|(scheme, _)| scheme.to_ascii_lowercase());
        let leads_out = scheme.is_some_and(|scheme| ["http", "https", "mailto"].contains(&scheme.as_str()));
        let opens = leads_out && !self.links.contains(&true);
        self.links.push(opens);
        opens.then(|| {
            let address = escaped(&address);
            Event::InlineHtml(format!("<a href=\"{address}\" rel=\"noopener noreferrer\" target=\"_blank\">").into())
        })
    }

    /// A text with its formulas rendered.
    fn with_formulas<'e>(&self, text: &str) -> Vec<Event<'e>> {
        let mut events = Vec::new();
        for (piece, formula) in pieces(text) {
            match formula.and_then(|number| self.formulas.get(number)) {
                None => events.push(Event::Text(piece.to_owned().into())),
                Some(formula) => events.push(Event::InlineHtml(self.rendered(formula).into())),
            }
        }
        events
    }

    fn rendered(&self, formula: &Formula) -> String {
        let mut latex = self.text[formula.latex.clone()].to_owned();
        let line = self.text[..formula.whole.start].rsplit('\n').next().unwrap_or_default();
        if line.trim_start().starts_with('>') {
            // The marks of the quotation that it stands in.
            latex = latex.lines().map(|line| line.trim_start().trim_start_matches('>')).collect::<Vec<_>>().join("\n");
        }
        // Some environments are for lines of their own alone.
        let math = mathml::from_latex(&latex, formula.display)
            .or_else(|| mathml::from_latex(&latex, true).filter(|_| !formula.display && latex.contains("\\begin")));
        math.unwrap_or_else(|| format!("<span class=\"latex\">{}</span>", escaped(&self.text[formula.whole.clone()])))
    }

    /// A text with its formulas as they were written.
    fn restored(&self, text: &str) -> String {
        let source =
            |(piece, formula): (&str, Option<usize>)| match formula.and_then(|number| self.formulas.get(number)) {
                Some(formula) => self.text[formula.whole.clone()].to_owned(),
                None => piece.to_owned(),
            };
        pieces(text).into_iter().map(source).collect()
    }
}

/// A text cut at the numbers of its formulas.
fn pieces(text: &str) -> Vec<(&str, Option<usize>)> {
    let parts = text.split(MARK).enumerate().filter(|(_, part)| !part.is_empty());
    parts.map(|(index, part)| (part, (index % 2 == 1).then(|| part.parse().ok()).flatten())).collect()
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn markdown_and_formulas() {
        for (text, expected) in [
            ("# A", "<h1>A</h1>"),
            ("a\nb", "<p>a<br />\nb</p>"),
            ("**$x$**", "<p><strong><math>"),
            ("$a_1$ and $b_1$", "<msub><mi>b</mi><mn>1</mn></msub>"),
            ("\\[\nx * y * z\n\\]", "<p><math display=\"block\">"),
            ("1. a\n2. \\(x\\)", "<li><math>"),
            ("> \\[\n> x\n> \\]", "<blockquote>\n<p><math display=\"block\"><semantics><mrow><mi>x</mi></mrow>"),
            ("| a |\n|--:|\n| $|x|$ |", "<td align=\"right\"><math>"),
            ("$\\begin{align*}a&=b\\end{align*}$", "<mtable"),
            ("$5 and $6", "<p>$5 and $6</p>"),
            ("`$a$`", "<code>$a$</code>"),
            ("```py\nx = \"$a$\" # \\(b\\)\n```", "<pre><code>x = \"$a$\" # \\(b\\)\n</code></pre>"),
            ("$\\frac{1$ <b>", "<span class=\"latex\">$\\frac{1$</span> &lt;b&gt;"),
            ("\u{E000}0\u{E000} $x$", "<p>\u{FFFD}0\u{FFFD} <math>"),
            (
                "[a](https://b.c/?d=\"&e)",
                "<a href=\"https://b.c/?d=&quot;&amp;e\" rel=\"noopener noreferrer\" target=\"_blank\">a</a>",
            ),
            (
                "[a $x$](http://b/$c$)",
                "<a href=\"http://b/$c$\" rel=\"noopener noreferrer\" target=\"_blank\">a <math>",
            ),
        ] {
            assert!(to_html(text).contains(expected), "{text}: {}", to_html(text));
        }
    }

    #[test]
    fn nothing_of_the_text_becomes_markup() {
        for (text, expected) in [
            ("<script>alert(1)</script>", "<p>&lt;script&gt;alert(1)&lt;/script&gt;</p>"),
            ("a <img src=x onerror=alert(1)> b", "<p>a &lt;img src=x onerror=alert(1)&gt; b</p>"),
            ("[a](javascript:alert(1))", "<p>a</p>"),
            ("[a](JaVaScRiPt:alert(1))", "<p>a</p>"),
            ("[a](data:text/html,x)", "<p>a</p>"),
            ("[a](/v1/models)", "<p>a</p>"),
            ("<javascript:alert(1)>", "<p>javascript:alert(1)</p>"),
            ("![a](x.png)", "<p>a</p>"),
            (
                "![a](https://b/c.png)",
                "<p><a href=\"https://b/c.png\" rel=\"noopener noreferrer\" target=\"_blank\">a</a></p>",
            ),
            ("```\"><script>\nx\n```", "<pre><code>x</code></pre>"),
            ("# a {#b .c onclick=d}", "<h1>a {#b .c onclick=d}</h1>"),
        ] {
            assert_eq!(to_html(text).replace("\n<", "<").trim_end(), expected, "{text}");
        }
    }

    /// The tags that an answer may have, each as it is written but for the address of a link.
    fn is_known(tag: &str) -> bool {
        const PLAIN: &str =
            "p h1 h2 h3 h4 h5 h6 strong em del ul ol li blockquote pre code table thead tbody tr th td a sup";
        const WHOLE: [&str; 7] = [
            "br /",
            "hr /",
            "span class=\"latex\"",
            "/span",
            "li",
            "input disabled=\"\" type=\"checkbox\"/",
            "input disabled=\"\" type=\"checkbox\" checked=\"\"/",
        ];
        let name = tag.strip_prefix('/').unwrap_or(tag);
        let is_link = || {
            let address = tag
                .strip_prefix("a href=\"")
                .and_then(|rest| rest.strip_suffix("\" rel=\"noopener noreferrer\" target=\"_blank\""));
            address.is_some_and(|address| {
                !address.contains('"')
                    && ["http:", "https:", "mailto:"].iter().any(|scheme| address.to_lowercase().starts_with(scheme))
            })
        };
        let is_cell = || {
            ["left", "center", "right"]
                .iter()
                .any(|side| tag == format!("td align=\"{side}\"") || tag == format!("th align=\"{side}\""))
        };
        let is_list = || {
            tag.strip_prefix("ol start=\"")
                .and_then(|rest| rest.strip_suffix('"'))
                .is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit()))
        };
        PLAIN.split(' ').any(|plain| plain == name) || WHOLE.contains(&tag) || is_link() || is_cell() || is_list()
    }

    proptest! {
        /// Whatever a model writes, no tag and no attribute comes through.
        #[test]
        fn anything(pieces in prop::collection::vec(prop::sample::select(vec![
            "<", ">", "\"", "'", "&", "a", "b ", "\n", "\n\n", "<script>", "</p>", "<img src=x onerror=y>", "<!--", "-->", "<a href=\"", "javascript:x",
            "[", "](", ")", "![", "]: ", "http://a", "mailto:b", "`", "```\n", "    ", "- ", "1. ", "> ", "# ", "|", "|-|\n", "|:-:|", "**", "_", "~~",
            "[ ] ", "$", "$$", "\\(", "\\)", "\\[", "\\]", "\\boxed{", "}", "\\text{", "\\", "{", "x^2", "\u{E000}", "0", "\u{e9}", "\t", "\r", "&lt;", "&#60;", "style=\"text-align: left\"",
        ]), 0..40)) {
            let html = to_html(&pieces.concat());
            for piece in html.split('<').skip(1) {
                let tag = piece.split_once('>').map(|(tag, _)| tag);
                prop_assert!(tag.is_some_and(|tag| is_known(tag) || mathml::is_tag(tag)), "{:?} in {}", tag, html);
            }
        }
    }
}
