//! The walks that llama.cpp takes from the beginnings of rules.

use std::mem::replace;

use super::{Element, Rule};

/// Rules that begin with each other, one inside the other. llama.cpp's search for left recursion takes about 170 bytes
/// of a stack for each.
pub const DEPTH: usize = 1000;
/// Elements which that search reads; it reads a rule again for every way to it, in about 2 ns an element.
const READS: u64 = 1 << 26;
/// Elements on all stacks that llama.cpp goes through for one character. It compares stacks with each other, which
/// takes half a second at this limit.
const STACKED: u64 = 10_000;

const ADVICE: &str = "let rules begin with text, and alternatives with different text";

/// The stacks that llama.cpp goes through from some element on.
#[derive(Clone, Copy, Default)]
struct Stacks {
    stacks: u64,
    /// Elements on all of them.
    elements: u64,
}

/// What llama.cpp does at the beginning of a rule.
#[derive(Clone, Copy, Default)]
struct Walk {
    /// How deep its search for left recursion gets.
    depth: usize,
    /// Elements that the search reads.
    reads: u64,
    stacks: Stacks,
}

/// The walks from all rules.
pub struct Walks<'a> {
    rules: &'a [Rule],
    names: &'a [&'a str],
    nullable: Vec<bool>,
    entered: Vec<bool>,
    walks: Vec<Option<Walk>>,
}

enum Step {
    Enter(usize),
    Leave(usize),
}

impl Stacks {
    const ONE: Self = Self { stacks: 1, elements: 1 };

    fn and(self, other: Self) -> Self {
        let stacks = self.stacks.saturating_add(other.stacks);
        Self { stacks, elements: self.elements.saturating_add(other.elements) }
    }

    /// The same with another element below each.
    fn raised(self) -> Self {
        Self { elements: self.elements.saturating_add(self.stacks), ..self }
    }
}

impl<'a> Walks<'a> {
    pub fn new(rules: &'a [Rule], names: &'a [&'a str]) -> Self {
        let n = rules.len();
        Self { rules, names, nullable: nullable(rules), entered: vec![false; n], walks: vec![None; n] }
    }

    /// Whether llama.cpp comes back from all of them.
    pub fn check(mut self) -> Result<(), String> {
        let mut reads = 0_u64;
        for id in 0..self.rules.len() {
            // llama.cpp, too, begins at each rule that it has not come to yet.
            if !self.entered[id] {
                self.visit(id)?;
                reads = reads.saturating_add(self.walk(id).reads);
            }
        }
        if reads > READS {
            return Err(format!("expected fewer ways for rules to begin with each other; {ADVICE}"));
        }
        // After a character llama.cpp goes on in the middle of a rule.
        let inside = self.rules.iter().flat_map(|rule| alternatives(rule)).flat_map(|part| self.stacks_from_each(part));
        let whole = self.walks.iter().flatten().map(|walk| walk.stacks);
        if inside.chain(whole).any(|stacks| stacks.elements > STACKED) {
            return Err(format!("expected at most {STACKED} ways to go on after a character, found more; {ADVICE}"));
        }
        Ok(())
    }

    /// Walks from a rule, after all rules that it may begin with.
    fn visit(&mut self, id: usize) -> Result<(), String> {
        let mut todo = vec![Step::Enter(id)];
        while let Some(step) = todo.pop() {
            match step {
                Step::Enter(id) if self.walks[id].is_some() => {}
                Step::Enter(id) if self.entered[id] => {
                    let name = self.names[id];
                    return Err(format!("expected no rule that begins with itself, found {name:.40}; {ADVICE}"));
                }
                Step::Enter(id) => {
                    self.entered[id] = true;
                    todo.push(Step::Leave(id));
                    todo.extend(self.beginnings(id).map(Step::Enter));
                }
                Step::Leave(id) => self.walks[id] = Some(self.measure(id)?),
            }
        }
        Ok(())
    }

    fn measure(&self, id: usize) -> Result<Walk, String> {
        let mut walk = Walk { depth: 1, reads: self.rules[id].len() as u64, ..Walk::default() };
        for first in self.beginnings(id).map(|id| self.walk(id)) {
            walk.depth = walk.depth.max(first.depth + 1);
            walk.reads = walk.reads.saturating_add(first.reads);
        }
        for alternative in alternatives(&self.rules[id]) {
            walk.stacks = walk.stacks.and(self.stacks_from_each(alternative).last().unwrap_or(Stacks::ONE));
        }
        if walk.depth > DEPTH {
            return Err(format!("expected at most {DEPTH} rules that begin with each other, found more; {ADVICE}"));
        }
        Ok(walk)
    }

    /// The rules that a rule may begin with, each as often as it does.
    fn beginnings(&self, id: usize) -> impl Iterator<Item = usize> {
        alternatives(&self.rules[id]).flat_map(move |alternative| {
            let mut first = true;
            alternative.iter().map_while(move |element| {
                let id = element.rule().filter(|_| first)?;
                first = self.nullable[id];
                Some(id)
            })
        })
    }

    /// The stacks from each element of an alternative on, from the last to the first.
    fn stacks_from_each(&self, alternative: &'a [Element]) -> impl Iterator<Item = Stacks> {
        alternative.iter().rev().scan(None, |after, element| {
            let mut stacks = Stacks::ONE;
            if let Some(id) = element.rule() {
                let inside = self.walk(id).stacks;
                stacks = stacks.and(if after.is_some() { inside.raised() } else { inside });
                if self.nullable[id] {
                    stacks = stacks.and(after.unwrap_or(Stacks::ONE));
                }
            }
            after.replace(stacks);
            *after
        })
    }

    /// Nothing while a rule was not walked yet: no beginning depends on it then.
    fn walk(&self, id: usize) -> Walk {
        self.walks[id].unwrap_or_default()
    }
}

fn alternatives(rule: &[Element]) -> impl Iterator<Item = &[Element]> {
    rule.split(|element| *element == Element::Or)
}

/// Which rules may be empty.
fn nullable(rules: &[Rule]) -> Vec<bool> {
    let mut nullable = vec![false; rules.len()];
    // Alternatives of rules only: whose they are, and how many of their rules are not known to be nullable.
    let mut waiting = Vec::new();
    let mut users = vec![Vec::new(); rules.len()];
    let mut found = Vec::new();
    for (id, rule) in rules.iter().enumerate() {
        for alternative in alternatives(rule) {
            let used: Option<Vec<_>> = alternative.iter().map(|element| element.rule()).collect();
            let Some(used) = used else { continue };
            if used.is_empty() {
                found.push(id);
            }
            used.iter().for_each(|&used| users[used].push(waiting.len()));
            waiting.push((id, used.len()));
        }
    }
    while let Some(id) = found.pop() {
        if !replace(&mut nullable[id], true) {
            for &user in &users[id] {
                waiting[user].1 -= 1;
                if waiting[user].1 == 0 {
                    found.push(waiting[user].0);
                }
            }
        }
    }
    nullable
}
