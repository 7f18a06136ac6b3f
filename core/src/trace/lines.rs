//! What a line of thinking is: an item of a list, a row of a table, or text; and where a list begins a step.

use super::ends::is_closer;

/// What the current line is, as far as it has been read.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) enum Line {
    #[default]
    Blank,
    /// A bullet: perhaps of an item, perhaps a minus sign or emphasis.
    Bullet,
    /// Emphasis or a bracket: perhaps around the number of an item.
    Open,
    /// Digits: perhaps the number of an item.
    Number,
    /// A letter: perhaps the one of an item.
    Letter,
    /// A number or letter and its point or bracket: an item if white space follows.
    Numbered,
    Item,
    /// A bar: perhaps a table row, perhaps an absolute value.
    Bar,
    Table,
    Text,
}

impl Line {
    pub(super) fn after(self, c: char) -> Line {
        match (self, c) {
            (_, '\n') => Line::Blank,
            (Line::Blank, c) if c.is_whitespace() => Line::Blank,
            (Line::Blank | Line::Open, '①'..='⓿') => Line::Item,
            (Line::Blank | Line::Open | Line::Number, c) if is_number(c) => Line::Number,
            (Line::Blank | Line::Open, c) if c.is_ascii_alphabetic() => Line::Letter,
            (Line::Blank, '|') => Line::Bar,
            (Line::Blank, '(' | '（') | (Line::Bullet, '*') => Line::Open,
            (Line::Blank, c) if is_bullet(c) => Line::Bullet,
            (Line::Bullet | Line::Numbered, c) if c.is_whitespace() => Line::Item,
            (Line::Number | Line::Letter, '.' | ')') => Line::Numbered,
            (Line::Number | Line::Letter, '．' | '）' | '、') => Line::Item,
            (Line::Numbered, c) if is_closer(c) => Line::Numbered,
            (Line::Bar, c) if c.is_whitespace() || c == '-' || c == ':' => Line::Table,
            (Line::Item | Line::Table, _) => self,
            _ => Line::Text,
        }
    }
}

/// The marks before items. Those beyond the first row mark nothing else at the head of a line.
const BULLETS: [&str; 2] = ["-*+–—", "•‣⁃◦●○■□▪▫◆◇►▸"];

fn is_bullet(c: char) -> bool {
    BULLETS.iter().any(|bullets| bullets.contains(c))
}

/// A digit of any script, or one of the numerals that Chinese and Japanese number with.
fn is_number(c: char) -> bool {
    c.is_numeric() || "一二三四五六七八九十".contains(c)
}

/// The lines of a text, read character by character.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Lines {
    line: Line,
    /// White space has been read at the head of the line.
    indented: bool,
    /// The last of the text so far is a colon.
    colon: bool,
    /// An item has come, and no line at the margin since that is none.
    in_list: bool,
}

impl Lines {
    pub(super) fn current(&self) -> Line {
        self.line
    }

    /// Whether `c` begins an item, or ends a list by beginning a line at the margin. What begins with `-`, `*`, `+` or a
    /// number shows too late whether it is an item: it is taken for one in a list, and after a colon.
    pub(super) fn starts_before(&self, c: char) -> bool {
        if self.line != Line::Blank || c.is_whitespace() {
            return false;
        }
        let item = begins_item(c);
        match self.in_list {
            true => item || !self.indented,
            false => BULLETS[1].contains(c) || self.colon && item,
        }
    }

    pub(super) fn push(&mut self, c: char) {
        let was = self.line;
        self.line = was.after(c);
        match c {
            '\n' => self.indented = false,
            c if c.is_whitespace() => self.indented |= was == Line::Blank,
            _ => {
                self.in_list &= was != Line::Blank || self.indented || begins_item(c);
                self.colon = matches!(c, ':' | '：') || self.colon && is_closer(c);
            }
        }
        self.in_list |= self.line == Line::Item;
    }
}

fn begins_item(c: char) -> bool {
    is_bullet(c) || is_number(c) || matches!(c, '(' | '（')
}
