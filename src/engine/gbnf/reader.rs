//! Reads a grammar into rules as llama.cpp's parser does, without its recursion.

use std::collections::HashMap;
use std::mem::{replace, take};

use super::{Element, Rule};

/// Groups inside each other. llama.cpp's parser takes about 450 bytes of a stack for each, and threads have 2 MiB.
pub const NESTING: usize = 500;
/// Bytes of the rules that llama.cpp makes of groups and repetitions.
const MADE: usize = 16 << 20;
/// Bytes of a rule beside its name and its elements, and bytes of an element.
const RULE: usize = 128;
const ELEMENT: usize = 8;
/// llama.cpp's MAX_REPETITION_THRESHOLD.
const REPETITIONS: u64 = 2000;

/// Why a grammar is not read to its end.
pub enum Stop {
    /// It is none: llama.cpp stops here, too.
    Syntax,
    /// llama.cpp would not survive it.
    Excess(String),
}

/// Reads what llama.cpp's parser reads, into the same rules in the same order.
pub struct Reader<'a> {
    rest: &'a str,
    ids: HashMap<&'a str, usize>,
    /// Of all rules; those made of a rule have its name.
    names: Vec<&'a str>,
    rules: Vec<Option<Rule>>,
    /// Bytes of the rules made of others.
    made: usize,
}

/// A rule that is being read.
struct Open {
    id: usize,
    rule: Rule,
    /// Where the item begins that a repetition repeats.
    item: usize,
    /// How many rules the item counts as.
    weight: u64,
}

impl Open {
    fn new(id: usize) -> Self {
        Self { id, rule: Rule::new(), item: 0, weight: 1 }
    }

    fn begin(&mut self, weight: usize) {
        self.item = self.rule.len();
        self.weight = weight as u64;
    }
}

impl<'a> Reader<'a> {
    pub fn new(gbnf: &'a str) -> Self {
        Self { rest: gbnf, ids: HashMap::new(), names: Vec::new(), rules: Vec::new(), made: 0 }
    }

    /// The names of all rules.
    pub fn names(&self) -> &[&'a str] {
        &self.names
    }

    /// The rules, read to the end of the text.
    pub fn grammar(&mut self) -> Result<Vec<Rule>, Stop> {
        self.space(true);
        while !self.rest.is_empty() {
            let name = self.name()?;
            let id = self.id(name);
            self.space(false);
            self.expect("::=")?;
            self.space(true);
            self.body(name, id)?;
            if !self.rest.is_empty() && !self.rest.starts_with(['\r', '\n']) {
                return Err(Stop::Syntax);
            }
            self.space(true);
        }
        // llama.cpp overlooks a name that is repeated zero times, and reads out of bounds if it is the root's.
        if let Some(id) = self.rules.iter().position(Option::is_none) {
            return excess(format!("a rule for every name, found none for {:.40}; write one", self.names[id]));
        }
        Ok(take(&mut self.rules).into_iter().flatten().collect())
    }

    fn body(&mut self, name: &'a str, id: usize) -> Result<(), Stop> {
        let mut open = Open::new(id);
        let mut around = Vec::new();
        while let Some(first) = self.rest.chars().next() {
            match first {
                '|' => {
                    self.expect("|")?;
                    self.space(true);
                    open.rule.push(Element::Or);
                    open.begin(1);
                }
                '(' => {
                    self.expect("(")?;
                    self.space(true);
                    around.push(replace(&mut open, Open::new(self.make(name)?)));
                    if around.len() > NESTING {
                        return excess(format!("at most {NESTING} nested parentheses, found more; nest less"));
                    }
                }
                ')' => {
                    let Some(outer) = around.pop() else { break };
                    self.expect(")")?;
                    let group = replace(&mut open, outer);
                    open.begin(self.rules.len() - group.id);
                    open.rule.push(Element::Rule(group.id));
                    self.rules[group.id] = Some(group.rule);
                }
                '*' | '+' | '?' | '{' => {
                    let (least, most) = self.times(!around.is_empty())?;
                    self.repeat(name, &mut open, least, most)?;
                }
                '"' | '[' | '<' | '!' | '.' => {
                    open.begin(1);
                    self.terminals(&mut open.rule)?;
                }
                first if is_word(first) => {
                    open.begin(1);
                    let name = self.name()?;
                    open.rule.push(Element::Rule(self.id(name)));
                }
                _ => break,
            }
            self.space(!around.is_empty());
        }
        self.rules[open.id] = Some(open.rule);
        if around.is_empty() { Ok(()) } else { Err(Stop::Syntax) }
    }

    fn terminals(&mut self, rule: &mut Rule) -> Result<(), Stop> {
        if self.take("\"") {
            while !self.take("\"") {
                self.character()?;
                rule.push(Element::Terminal);
            }
        } else if self.take("[") {
            let _ = self.take("^");
            while !self.take("]") {
                self.character()?;
                rule.push(Element::Terminal);
                if self.rest.starts_with('-') && !self.rest.starts_with("-]") {
                    self.expect("-")?;
                    self.character()?;
                    rule.push(Element::Terminal);
                }
            }
        } else {
            if !self.take(".") {
                self.token()?;
            }
            rule.push(Element::Terminal);
        }
        Ok(())
    }

    fn character(&mut self) -> Result<(), Stop> {
        let mut characters = self.rest.chars();
        if characters.next().ok_or(Stop::Syntax)? == '\\' {
            let n_digits = match characters.next() {
                Some('x') => 2,
                Some('u') => 4,
                Some('U') => 8,
                Some('t' | 'r' | 'n' | '\\' | '"' | '[' | ']' | '-') => 0,
                _ => return Err(Stop::Syntax),
            };
            if characters.by_ref().take(n_digits).filter(char::is_ascii_hexdigit).count() != n_digits {
                return Err(Stop::Syntax);
            }
        }
        self.rest = characters.as_str();
        Ok(())
    }

    fn token(&mut self) -> Result<(), Stop> {
        let _ = self.take("!");
        self.expect("<")?;
        if self.take("[") {
            self.number()?;
            return self.expect("]>");
        }
        let (_, rest) = self.rest.split_once('>').ok_or(Stop::Syntax)?;
        self.rest = rest;
        Ok(())
    }

    /// How often an item comes at least and at most.
    fn times(&mut self, nested: bool) -> Result<(u64, Option<u64>), Stop> {
        for (sign, times) in [("*", (0, None)), ("+", (1, None)), ("?", (0, Some(1)))] {
            if self.take(sign) {
                return Ok(times);
            }
        }
        self.expect("{")?;
        self.space(nested);
        let least = self.number()?;
        self.space(nested);
        let mut most = Some(least);
        if self.take(",") {
            self.space(nested);
            let bounded = self.rest.starts_with(|c: char| c.is_ascii_digit());
            most = if bounded { Some(self.number()?) } else { None };
            self.space(nested);
        }
        self.expect("}")?;
        if least > REPETITIONS {
            return Err(Stop::Syntax);
        }
        Ok((least, most.filter(|&most| most <= REPETITIONS)))
    }

    /// Writes the last item as often as it comes, what is optional as rules of their own.
    fn repeat(&mut self, name: &'a str, open: &mut Open, least: u64, most: Option<u64>) -> Result<(), Stop> {
        let item = open.rule[open.item..].to_vec();
        open.weight = open.weight.saturating_mul(most.filter(|&most| most > 0).unwrap_or(least.max(1)));
        if item.is_empty() || open.weight > REPETITIONS {
            return Err(Stop::Syntax);
        }
        // llama.cpp takes their difference for a huge number.
        let Some(optional) = most.map_or(Some(1), |most| most.checked_sub(least)) else {
            return excess(format!("a repetition {{m,n}} with m <= n, found m = {least}; swap them"));
        };
        self.spend(item.len().saturating_mul(ELEMENT * (least + optional) as usize))?;
        open.rule.truncate(open.item);
        (0..least).for_each(|_| open.rule.extend(&item));
        let mut last = None;
        for _ in 0..optional {
            let id = self.make(name)?;
            let mut rule = item.clone();
            rule.extend(if most.is_none() { Some(Element::Again) } else { last });
            rule.push(Element::Or);
            self.rules[id] = Some(rule);
            last = Some(Element::Rule(id));
        }
        open.rule.extend(last);
        Ok(())
    }

    /// A new rule made of the one with that name.
    fn make(&mut self, name: &'a str) -> Result<usize, Stop> {
        self.spend(RULE + name.len())?;
        Ok(self.add(name))
    }

    fn spend(&mut self, bytes: usize) -> Result<(), Stop> {
        self.made = self.made.saturating_add(bytes);
        if self.made > MADE {
            return excess(format!("groups and repetitions that take at most {MADE} bytes, found more; repeat less"));
        }
        Ok(())
    }

    fn id(&mut self, name: &'a str) -> usize {
        if let Some(&id) = self.ids.get(name) {
            return id;
        }
        let id = self.add(name);
        self.ids.insert(name, id);
        id
    }

    fn add(&mut self, name: &'a str) -> usize {
        self.names.push(name);
        self.rules.push(None);
        self.rules.len() - 1
    }

    fn name(&mut self) -> Result<&'a str, Stop> {
        self.some(is_word)
    }

    fn number(&mut self) -> Result<u64, Stop> {
        self.some(|c| c.is_ascii_digit())?.parse().map_err(|_| Stop::Syntax)
    }

    fn some(&mut self, is: impl Fn(char) -> bool) -> Result<&'a str, Stop> {
        let end = self.rest.find(|c| !is(c)).unwrap_or(self.rest.len());
        let (some, rest) = self.rest.split_at(end);
        self.rest = rest;
        if some.is_empty() { Err(Stop::Syntax) } else { Ok(some) }
    }

    /// Skips blanks and comments.
    fn space(&mut self, newlines: bool) {
        let is_newline = |c| matches!(c, '\r' | '\n');
        loop {
            self.rest = self.rest.trim_start_matches(|c| matches!(c, ' ' | '\t') || (newlines && is_newline(c)));
            if !self.rest.starts_with('#') {
                return;
            }
            self.rest = self.rest.trim_start_matches(|c| !is_newline(c));
        }
    }

    fn expect(&mut self, text: &str) -> Result<(), Stop> {
        if self.take(text) { Ok(()) } else { Err(Stop::Syntax) }
    }

    fn take(&mut self, text: &str) -> bool {
        let rest = self.rest.strip_prefix(text);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '-'
}

fn excess<T>(expected: String) -> Result<T, Stop> {
    Err(Stop::Excess(format!("expected {expected}")))
}
