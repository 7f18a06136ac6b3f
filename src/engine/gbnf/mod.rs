//! Which grammars llama.cpp survives: it recurses over them, and takes every way through the beginnings of their rules.

mod reader;
mod walks;

use reader::{Reader, Stop};
use walks::Walks;

/// A part of a rule.
#[derive(Clone, Copy, PartialEq)]
enum Element {
    /// A character, another one of the same class, or a token.
    Terminal,
    Rule(usize),
    /// The rule itself, at its end, where a repetition goes on. It is no left recursion though what is repeated may be
    /// empty: with nothing in between llama.cpp comes upon the same stack, and goes through each just once.
    Again,
    Or,
}

type Rule = Vec<Element>;

impl Element {
    fn rule(self) -> Option<usize> {
        if let Self::Rule(id) = self { Some(id) } else { None }
    }
}

/// Whether llama.cpp can be given a text as a grammar. What is no grammar it refuses itself.
///
/// # Errors
/// When it would overflow its stack, take too much memory, or not come back.
pub(super) fn check(gbnf: &str) -> Result<(), String> {
    let mut reader = Reader::new(gbnf);
    match reader.grammar() {
        Ok(rules) => Walks::new(&rules, reader.names()).check(),
        Err(Stop::Syntax) => Ok(()),
        Err(Stop::Excess(why)) => Err(why),
    }
}

#[cfg(test)]
mod tests {
    use super::reader::NESTING;
    use super::walks::DEPTH;
    use super::*;
    use proptest::prelude::*;

    /// `n` rules of which each is `rule`, where `{}` is the next one.
    fn chain(n: usize, rule: &str) -> String {
        let rule = |i| format!("r{i} ::= {}\n", rule.replace("{}", &format!("r{}", i + 1)));
        format!("root ::= r0\n{}r{n} ::= \"x\"\n", (0..n).map(rule).collect::<String>())
    }

    fn accepted(gbnf: &str) {
        assert_eq!(check(gbnf), Ok(()), "{gbnf:.200}");
    }

    fn refused(gbnf: &str, reason: &str) {
        let error = check(gbnf).unwrap_err();
        assert!(error.contains(reason), "{gbnf:.200}: {error}");
    }

    #[test]
    fn nesting_and_chains_that_overflow_a_stack() {
        let nested = |n| format!("root ::= {}\"x\"{}", "(".repeat(n), ")".repeat(n));
        accepted(&nested(NESTING));
        refused(&nested(NESTING + 1), "nested");
        refused(&format!("root ::= {}", "(\n".repeat(60_000)), "nested");
        accepted(&chain(DEPTH - 2, "{}"));
        refused(&chain(DEPTH, "{}"), "begin with each other");
        refused(&chain(18_000, "[ ]* {}"), "begin with each other");
    }

    #[test]
    fn left_recursion_even_through_rules_that_only_others_make_empty() {
        for gbnf in [
            r#"root ::= root "x" | "y""#,
            "root ::= b root\nb ::= c\nc ::= \"\"",
            "root ::= b root \"x\" | \"y\"\nb ::= c c\nc ::= [ ]*",
            r#"root ::= ("a"{0,3} | "b") root?"#,
            "root ::= b{2,}\nb ::= c* \"x\"\nc ::= \"c\"? root",
        ] {
            refused(gbnf, "begins with itself");
        }
        accepted("root ::= ws* \"x\" (\"a\"* \"b\"?)*\nws ::= [ \\t]*");
    }

    #[test]
    fn ways_that_multiply() {
        refused(&chain(50, "{}|{}"), "fewer ways");
        refused(&chain(50, "({}|{})?"), "fewer ways");
        refused(&chain(14, "{} \"x\" | {} \"y\""), "ways to go on");
        refused(&format!("{}root ::= \"a\" {}", chain(8, "{}|{}"), "r0? ".repeat(100)), "ways to go on");
        refused(&format!("root ::= {}\"x\"", "\"x\" | ".repeat(20_000)), "ways to go on");
    }

    #[test]
    fn names_without_a_rule() {
        for gbnf in ["root ::= missing", "root ::= missing{0}", "a ::= root{0}"] {
            refused(gbnf, "rule for every name");
        }
    }

    #[test]
    fn repetitions_that_do_not_end_or_fill_the_memory() {
        refused("root ::= \"x\"{3,2}", "m <= n");
        refused("root ::= \"x\"{1,0}", "m <= n");
        for rule in ["[x]{0,2000} ".repeat(5000), format!("\"{}\"{{0,2000}}", "x".repeat(30_000))] {
            refused(&format!("root ::= {rule}"), "bytes");
        }
        refused(&format!("{} ::= {}", "r".repeat(30_000), "\"x\"? ".repeat(6000)), "bytes");
    }

    #[test]
    fn grammars_in_use() {
        let property = |i| format!("p{i} ::= (\",\" s \"p{i}\" s \":\" v)? p{}\n", i + 1);
        let properties: String = (0..512).map(property).collect();
        accepted(&format!(
            "root ::= p0\n{properties}p512 ::= \"\"\nv ::= [0-9]{{1,16}} s\ns ::= | \" \" | \"\\n\"{{1,2}}"
        ));
        accepted(&format!("root ::= ({}\"x\") [ ]?", "\"word\" | ".repeat(4000)));
        accepted("root ::= <think> (!</think>)* </think> <[12]> !<[3]> . [\\u3041-\\U0000309F-]");
        accepted("root ::= \"x\"{0,2000} (\"a\" | \"bc\"{2,}){0,100} \"y\"{0,100000}");
        accepted(
            "# Sums.\nroot ::= (sum \"=\" ws term \"\\n\")+\r\nsum ::= term ([-+*/] term)*\n\n\
             term ::= [a-z]+ ws | (\n  [0-9]+ # or\n | \"(\" ws sum \")\"\n) ws\nws ::= [ \\t\\n]*",
        );
    }

    #[test]
    fn what_is_no_grammar_is_left_to_llama_cpp() {
        for rule in ["", "(", "\"x", "[\\q]", "\"x\"{2001}", "(\"x\"", "*", "\0"] {
            accepted(&format!("root ::= {rule}"));
        }
    }

    /// Marks of the language and beginnings of rules, in any order.
    const ODD: &str = r#"([ab \n"\[\]()|*+?{},.<>!#0-9\\x^-]|b\n?a ::= ){0,60}"#;

    proptest! {
        #[test]
        fn no_text_is_too_odd(text in any::<String>(), odd in ODD) {
            let _ = check(&text);
            let _ = check(&format!("root ::= {odd}"));
        }
    }
}
