//! Grading of answers: which pairs are equal, and what a reply's final answer is.

use serde_json::Value;
use stepflow::eval::grade::Answer::{self, Choice};
use stepflow::eval::grade::{Kind, canonical, extract, is_correct};

/// Found, reference, whether they are equal.
type Pair = (&'static str, &'static str, bool);

fn check(pairs: &[Pair]) {
    for &(found, reference, equal) in pairs {
        let free = Answer::Free(reference.into());
        assert_eq!(is_correct(found, &free), equal, "{found} against {reference}");
        assert_eq!(is_correct(reference, &Answer::Free(found.into())), equal, "{reference} against {found}");
        assert_eq!(canonical(found, &free) == canonical(reference, &free), equal, "votes for {found} and {reference}");
    }
}

#[test]
fn integers_and_decimals() {
    check(&[
        ("5", "5", true),
        ("5", "6", false),
        ("-5", "5", false),
        ("−5", "-5", true),
        ("+5", "5", true),
        ("05", "5", true),
        ("007", "7", true),
        ("70", "7", false),
        ("5.", "5", true),
        ("5.0", "5", true),
        ("5.00", "5.0", true),
        ("5.01", "5", false),
        (".5", "0.5", true),
        ("0.50", ".5", true),
        ("0.5", "0.05", false),
        ("-0", "0", true),
        ("-0.25", "-.25", true),
        ("0.333", "1/3", false),
        ("3.14", r"\pi", false),
        ("3.14", "3.1416", false),
        (" 42 ", "42", true),
        ("42", "24", false),
        ("4 2", "42", false),
        ("１", "1", false),
    ]);
}

#[test]
fn thousands_and_large_numbers() {
    check(&[
        ("1,234", "1234", true),
        ("1{,}234", "1234", true),
        (r"1\,234", "1234", true),
        (r"1,\!234", "1234", true),
        ("1,234,567.5", "1234567.5", true),
        ("12,34", "1234", false),
        ("1,234", "1,235", false),
        ("1, 234", "1234", false),
        ("0,5", "0.5", false),
        ("1.234", "1234", false),
        ("10,000", "1000", false),
        ("123456789012345678901234567890", "123456789012345678901234567890", true),
        ("1234567890123456789012345678901234567890123", "1234567890123456789012345678901234567890123", true),
        (
            "1,234,567,890,123,456,789,012,345,678,901,234,567,890,123",
            "1234567890123456789012345678901234567890123",
            true,
        ),
        ("-01234567890123456789012345678901234567890123", "-1234567890123456789012345678901234567890123.0", true),
        ("1234567890123456789012345678901234567890124", "1234567890123456789012345678901234567890123", false),
        ("9007199254740993", "9007199254740992", false),
    ]);
}

#[test]
fn fractions() {
    check(&[
        ("3/4", r"\frac{3}{4}", true),
        ("0.75", r"\frac{3}{4}", true),
        ("6/8", "3/4", true),
        ("4/3", "3/4", false),
        (r"\dfrac{3}{4}", r"\frac34", true),
        (r"\tfrac{3}{4}", r"\frac{3}{4}", true),
        (r"\frac12", "0.5", true),
        (r"\frac1{72}", "1/72", true),
        (r"\frac{1}2", "1/2", true),
        (r"\frac 1 2", "1/2", true),
        (r"\frac{-3}{4}", r"-\frac34", true),
        (r"\frac{3}{-4}", "-3/4", true),
        (r"\frac{-3}{-4}", "3/4", true),
        (r"-\frac{-3}{4}", "0.75", true),
        (r"\frac{-3}{4}", r"\frac34", false),
        (r"\frac{10}{5}", "2", true),
        (r"\frac{1}{0}", "0", false),
        (r"\frac{1.5}{2}", "3/4", true),
        (r"\frac{1}{23}", r"\frac{12}{3}", false),
        (r"1\frac{1}{2}", "3/2", true),
        (r"1 \frac12", "1.5", true),
        ("1 1/2", "1.5", true),
        ("1 1/2", "11/2", false),
        (r"-1\frac{1}{2}", "-3/2", true),
        (r"-1\frac{1}{2}", r"-\frac{1}{2}", false),
        (r"2\frac{1}{2}", "1", false),
        ("1 / 2", "0.5", true),
        (r"\left(\frac{1}{2}\right)", "1/2", true),
        ("(-3)", "-3", true),
    ]);
}

#[test]
fn percentages() {
    check(&[
        (r"50\%", "50%", true),
        ("50%", "1/2", true),
        ("50%", "0.5", true),
        ("50", "50%", true),
        ("0.5", r"50\%", true),
        ("50 %", "50%", true),
        ("50 percent", "50%", true),
        (r"50\text{ percent}", "50", true),
        ("5%", "50%", false),
        ("0.5%", "50%", false),
        ("50%", "5", false),
        ("50.0%", "50%", true),
        (r"33\frac{1}{3}\%", "1/3", true),
        (r"33\%", "1/3", false),
    ]);
}

#[test]
fn scientific_notation() {
    check(&[
        ("3.2e5", "320000", true),
        (r"3.2 \times 10^{5}", "320000", true),
        (r"3.2 \cdot 10^5", "3.2E5", true),
        ("3.2×10^5", "320,000", true),
        (r"5\times10^{-3}", "0.005", true),
        ("10^{6}", "1,000,000", true),
        (r"3.2 \times 10^{5}", "32000", false),
        (r"3.2 \times 10^{5}", r"3.2 \times 10^{-5}", false),
        ("2^{10}", "1024", false),
        ("1e400", "1", false),
    ]);
}

#[test]
fn money_units_and_degrees() {
    check(&[
        ("$18", "18", true),
        (r"\$18.00", "18", true),
        (r"\$1{,}234.50", "1234.5", true),
        ("$18$", "18", true),
        ("€18", "18", true),
        ("18 dollars", "18", true),
        (r"5\text{ dollars}", "5", true),
        (r"5\ \text{dollars}", r"\$5", true),
        ("36 coins", "36", true),
        ("36 coins.", "36", true),
        ("35 coins", "36", false),
        ("12 cm", "12", true),
        ("12cm", "12", true),
        (r"12\,\mathrm{cm}", "12", true),
        (r"12\text{ cm}^2", "12", true),
        ("12 cm²", "12", true),
        ("12 square inches", "12", true),
        ("60 miles per hour", "60", true),
        ("5 m/s^2", "5", true),
        (r"5\mbox{ m}", "5", true),
        ("3 boxes of pens", "3", true),
        ("1/2 cup", r"\frac12", true),
        (r"2\sqrt{3}\text{ cm}", r"2\sqrt{3}", true),
        (r"9\pi\text{ square units}", r"9\pi", true),
        (r"30^\circ", "30", true),
        (r"30^{\circ}", "30", true),
        ("30°", "30", true),
        ("30 degrees", r"30^\circ", true),
        (r"30^\circ", "60", false),
        (r"25^\circ\text{C}", "25", true),
        ("5 million", "5", false),
        ("2 dozen", "2", false),
        ("5x", "5", false),
        ("5 x", "5", false),
        ("5m", "5", false),
        ("12 cm", "13 cm", false),
        ("5 apples and 3 pears", "5", false),
        (r"1011_{2}", "1011", false),
        (r"5!", "5", false),
        ("3:30", "3", false),
    ]);
}

#[test]
fn assignments_and_decoration() {
    check(&[
        ("x = 5", "5", true),
        ("x=5", "x = 5", true),
        ("y=5", "5", true),
        ("x_1 = 5", "5", true),
        (r"\theta = 30^\circ", "30", true),
        ("x = -5", "5", false),
        ("5 = x", "5", false),
        ("x = y = 5", "5", false),
        ("x > 5", "5", false),
        (r"x \neq 5", "5", false),
        (r"x \leq 5", r"x \le 5", true),
        (r"x \leq 5", r"x \geq 5", false),
        ("y = 2x + 3", "2x+3", true),
        ("y = 2x + 3", "2x-3", false),
        (r"x \in [1, 2]", "[1,2]", true),
        ("**5**", "5", true),
        (r"\textbf{5}", "5", true),
        (r"\(5\)", "5", true),
        (r"\boxed{5}", "5", true),
        (r"\displaystyle\frac{1}{2}", "1/2", true),
        (r"\text{5}", "5", true),
        ("", "5", false),
        ("$$", "0", false),
    ]);
}

#[test]
fn lists() {
    check(&[
        ("(1, 2)", "(1,2)", true),
        (r"\left( 1,\ 2 \right)", "(1,2)", true),
        ("(1,2)", "(2,1)", false),
        ("(1,2)", "(1,2,3)", false),
        ("(1,2)", "(1,3)", false),
        (r"(0.5, \frac{3}{4})", r"(\frac12, 0.75)", true),
        (r"\left(3, \frac{\pi}{2}\right)", r"(3,\dfrac\pi2)", true),
        ("(1, 234)", "(1,234)", true),
        ("(1,234)", "1234", false),
        ("[3,5)", "[3, 5)", true),
        ("[3,5)", "[3,5]", false),
        ("[3,5)", "(3,5)", false),
        (r"(-\infty, 2]", r"\left(-\infty, 2.0\right]", true),
        (r"(-\infty, 2]", r"(\infty, 2]", false),
        (r"(2, +\infty)", r"(2,\infty)", true),
        (r"\{1,2\}", r"\{2, 1\}", true),
        (r"\{1,2\}", "{1, 2}", true),
        (r"\{1,2\}", "(1,2)", false),
        (r"\{1,2\}", r"\{1,3\}", false),
        (r"\{1,1,2\}", r"\{1,2\}", false),
        (r"\{(1,2),(3,4)\}", r"\{(3,4),(1,2)\}", true),
        (r"\{(1,2),(3,4)\}", r"\{(2,1),(3,4)\}", false),
        ("1, 2", "1,2", true),
        ("2, 1", "1,2", true),
        ("1, 2", "1, 2, 3", false),
        ("1, 2", "12", false),
        ("x = 1, 2", "2, 1", true),
        ("x = 1, y = 2", "x = 2, y = 1", false),
        ("((1,2),3)", "(1,(2,3))", false),
        (r"(-\infty,1)\cup(3,\infty)", r"(-\infty, 1) \cup (3, \infty)", true),
        (r"(-\infty,1)\cup(3,\infty)", r"(-\infty, 1] \cup (3, \infty)", false),
        ("(1,2", "(1,2)", false),
    ]);
}

#[test]
fn formulas_and_words() {
    check(&[
        (r"2\sqrt{3}", r"2\sqrt3", true),
        (r"2 \sqrt 3", r"2\sqrt{3}", true),
        (r"2\cdot\sqrt{3}", r"2\sqrt{3}", true),
        ("2√3", r"2\sqrt{3}", true),
        (r"2\sqrt{3}", r"3\sqrt{2}", false),
        (r"2\sqrt{3}", r"\sqrt{23}", false),
        (r"\sqrt{12}", "12", false),
        (r"\sqrt[3]{2}", r"\sqrt{2}", false),
        (r"\sqrt[3]{2}", r"\sqrt[3]2", true),
        (r"\dfrac{\sqrt3}{2}", r"\frac{\sqrt{3}}{2}", true),
        (r"\sqrt{3}/2", r"\frac{\sqrt{3}}{2}", true),
        (r"(1+\sqrt{5})/2", r"\frac{1+\sqrt{5}}{2}", true),
        (r"1+\sqrt{5}/2", r"\frac{1+\sqrt{5}}{2}", false),
        (r"-\frac{\sqrt{3}}{2}", r"\frac{-\sqrt3}{2}", true),
        (r"\frac{-1+\sqrt5}{2}", r"-\frac{1+\sqrt5}{2}", false),
        (r"3\pi", "3π", true),
        (r"3\pi", "3", false),
        (r"3\pi/4", r"\frac{3\pi}{4}", true),
        (r"\pi^2", r"\pi^{2}", true),
        (r"\pi^2", r"2\pi", false),
        ("x^2 + 2x + 1", "x^{2}+2x+1", true),
        ("x^2+2x+1", "x^2+2x-1", false),
        ("x^{12}", "x^12", false),
        ("2*3", "23", false),
        ("2*x", "2x", true),
        (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", true),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 2 \\ 1 \end{pmatrix}", false),
        (r"\begin{pmatrix} \dfrac12 \\ 2 \end{pmatrix}", r"\begin{pmatrix} \frac{1}{2} \\ 2 \end{pmatrix}", true),
        (r"\text{Evelyn}", "Evelyn", true),
        (r"\text{even}", "Even", true),
        ("even", "odd", false),
        (r"\text{New York}", "New  York", true),
        ("A", "a", false),
        ("3+4i", "3 + 4i", true),
        ("3+4i", "3-4i", false),
        (r"6 \pm \sqrt{2}", r"6\pm\sqrt2", true),
        (r"\{", "{", false),
        (r"\frac{1", "1", false),
        ("2516_8", "2516_{8}", true),
        ("2516_8", "2516_9", false),
    ]);
}

/// Numbers that are in print in two forms.
#[test]
fn forms_in_print() {
    check(&[
        // AIME sheets print three digits; collections print the integer.
        ("025", "25", true),
        ("000", "0", true),
        ("204", "204", true),
        ("025", "250", false),
        // The golden ratio and the sixth of a turn, with the slash of plain text and as LaTeX.
        (r"(1+\sqrt{5})/2", r"\dfrac{1+\sqrt5}{2}", true),
        (r"\pi/3", r"\frac{\pi}{3}", true),
        // 3 1/7, the bound of Archimedes, and 22/7; not pi.
        (r"3\frac{1}{7}", "22/7", true),
        ("22/7", r"\pi", false),
        // The speed of light in m/s.
        (r"2.99792458 \times 10^{8}", "299,792,458", true),
        // Avogadro's number as the SI defines it.
        (r"6.02214076\times10^{23}", "602214076000000000000000", true),
    ]);
}

#[test]
fn nothing_is_never_right() {
    assert!(!is_correct("", &Answer::Free(String::new())));
    assert!(!is_correct("", &Answer::Choice('A')));
}

#[test]
fn choices() {
    for (found, letter, right) in [
        ("B", 'B', true),
        ("b", 'B', true),
        ("(B)", 'B', true),
        ("(b)", 'B', true),
        ("B)", 'B', true),
        ("B.", 'B', true),
        ("[B]", 'B', true),
        (r"\text{B}", 'B', true),
        (r"\text{(B)}", 'B', true),
        (r"\textbf{(B)}\ 12", 'B', true),
        (r"\mathbf{B}", 'B', true),
        ("**B**", 'B', true),
        ("**B) Paris**", 'B', true),
        ("B. because A is wrong", 'B', true),
        ("B because of C", 'B', true),
        ("B: 12 cm", 'B', true),
        ("b) twelve", 'B', true),
        ("Option B", 'B', true),
        ("choice (B)", 'B', true),
        ("$B$", 'B', true),
        ("B, since it fits", 'B', true),
        ("A", 'B', false),
        ("(C)", 'B', false),
        ("A, B", 'B', false),
        ("B, C", 'B', false),
        ("B and C", 'B', false),
        ("(B) or (C)", 'B', false),
        ("A/B", 'A', false),
        ("A, B and C", 'A', false),
        ("AB", 'A', false),
        ("Both", 'B', false),
        ("because of B", 'B', false),
        ("a mixture of both", 'A', false),
        ("2", 'B', false),
        ("", 'B', false),
        ("Б", 'B', false),
    ] {
        let reference = Answer::Choice(letter);
        assert_eq!(is_correct(found, &reference), right, "{found} against {letter}");
        assert_eq!(canonical(found, &reference) == letter.to_string(), right, "vote for {found}");
    }
}

#[test]
fn final_answers_are_found() {
    for (reply, answer) in [
        (r"So \boxed{5}.", Some("5")),
        (r"\boxed{4}, no: \boxed{5}", Some("5")),
        (r"\boxed{\frac{1}{2}}", Some(r"\frac{1}{2}")),
        (r"\boxed{\{1,2\}}", Some(r"\{1,2\}")),
        (r"\boxed{\left\{ 1 \right.} rest", Some(r"\left\{ 1 \right.")),
        (r"\fbox{7} is it", Some("7")),
        (r"\boxed {8}", Some("8")),
        (r"$\boxed 5$", Some("5")),
        (r"\boxed 5.", Some("5")),
        (r"\boxed\frac", Some(r"\frac")),
        (r"\boxed{5} and \boxed{6", Some("5")),
        (r"\boxed{3 and \boxed{6}", Some("6")),
        (r"\boxed{5} and \boxed{}", Some("5")),
        (r"\boxed{\boxed{5}}", Some(r"\boxed{5}")),
        (r"} \boxed{5}", Some("5")),
        (r"The answer is 4. \boxed{5}", Some("5")),
        (r"\boxed{5}. The answer is 4.", Some("5")),
        ("The answer is 5.", Some("5")),
        ("The answer is: $5$.", Some("$5$")),
        ("the ANSWER IS 5. I checked it 3 times.", Some("5")),
        ("The answer is 4. No, the answer is 5", Some("5")),
        ("The answer is 3.5 cm. Done", Some("3.5 cm")),
        ("The answer is **B**.", Some("B")),
        ("The answer is B because 3 is odd", Some("B because 3 is odd")),
        ("The answer is therefore 12", Some("12")),
        (r"Answer: $\frac{3}{4}$", Some(r"$\frac{3}{4}$")),
        ("**Answer:** 12", Some("12")),
        ("Answer:\n\n(1, 2)\n", Some("(1, 2)")),
        ("**Final Answer**\n\n42", Some("42")),
        ("**Final Answer**: 42", Some("42")),
        ("**Final Answer**\nJanet makes 18 dollars in 1 day.", Some("1")),
        (r"**Final Answer**", None),
        (r"Answer: the share is $\frac{3}{4}$ of it", Some(r"\frac{3}{4}")),
        ("Answer: it costs $5, not $6 each", Some("5")),
        ("So 2 + 3 = 5\n#### 5", Some("5")),
        ("#### 1,234", Some("1,234")),
        ("She has 12 apples and eats 3, so 9 are left.", Some("9")),
        ("It is -5 now", Some("-5")),
        ("That is 7-5 of 12-3", Some("3")),
        ("It costs $1,234.50.", Some("1,234.50")),
        ("about 3/4 of them", Some("3/4")),
        ("so 50% of them", Some("50%")),
        ("an area of 12 m^2", Some("12")),
        ("in 1, 2, 345", Some("345")),
        ("一共 18 只。", Some("18")),
        ("B", Some("B")),
        (r"$\frac{3}{4}$", Some(r"$\frac{3}{4}$")),
        ("I do not know.", None),
        (r"I think \boxed{5", None),
        (r"The answer is 5: \boxed{6", Some("5:")),
        ("", None),
        ("  \n", None),
    ] {
        assert_eq!(extract(reply, Kind::Free).as_deref(), answer, "{reply}");
    }
}

fn free(answer: &str) -> Answer {
    Answer::Free(answer.into())
}

fn is_right(reply: &str, answer: &Answer) -> bool {
    extract(reply, answer.kind()).is_some_and(|found| is_correct(&found, answer))
}

/// Reply, answer, whether it is right.
fn check_replies(cases: &[(&str, Answer, bool)]) {
    for (reply, answer, right) in cases {
        let found = extract(reply, answer.kind());
        assert_eq!(is_right(reply, answer), *right, "{reply} for {answer:?}: found {found:?}");
    }
}

#[test]
fn answers_end_where_something_is_said_of_them() {
    check_replies(&[
        ("The answer is 72, in total, so the shop keeps that.", free("72"), true),
        ("Answer: 18 dollars because she sells nine of the eggs", free("18"), true),
        ("#### 40 (10 + 30)", free("40"), true),
        ("The answer is $1,250, not $1,300.", free("1250"), true),
        ("Answer: **42** apples, as shown", free("42"), true),
        ("The answer is **42** apples, as shown.", free("42"), true),
        ("The answer is 15, since 3 times 5 is 15.", free("15"), true),
        ("Answer: 7 (seven) days", free("7"), true),
        ("The final answer is $3/4$ of the cake, which is 75 percent of it or so.", free("3/4"), true),
        ("So the answer is 12 hours, assuming he starts at 8.", free("12"), true),
        ("Answer: $x = 5$, because $2x = 10$.", free("5"), true),
        ("#### 1,234 dollars (12 months)", free("1234"), true),
        ("The answer is 36; she had 40 and gave away 4.", free("36"), true),
        ("The answer is 60 mph — the car slowed down after 3 hours.", free("60"), true),
        ("Answer: 25% of the class, or about a quarter", free("25%"), true),
        ("The answer is -3, as the line crosses at 4.", free("-3"), true),
        (r"**Answer:** $\frac{1}{2}$, i.e. half of them, 6 of 12.", free("1/2"), true),
        ("The answer is 9 where x is 3.", free("9"), true),
        ("The answer is 5 and not 6.", free("5"), true),
        ("Answer: 8 and that is all.", free("8"), true),
        ("The answer is 20 minutes for 3 batches.", free("20"), true),
        ("The answer is Evelyn, since she ran 5 miles in 1 hour.", free("Evelyn"), true),
        ("Answer: it costs $5, not $6 each", free("5"), true),
        ("The answer is therefore 14 rather than 15.", free("14"), true),
        ("The answer is 10. I hope this answer is helpful.", free("10"), true),
        ("### Final Answer\n\n17 marbles, because 20 - 3 = 17", free("17"), true),
        ("The answer is:\n\\[\n x = 11\n\\]\nas 22/2 = 11, which we checked with 3 values.", free("11"), true),
        ("#### $45 (i.e. 3 * 15)", free("45"), true),
        ("The answer is 5 apples and 3 pears", free("5"), false),
        ("The answer is 5 feet 4 inches", free("5"), false),
        ("The answer is 3 million, as of 2020.", free("3"), false),
        ("Answer: 2 (x + 1)", free("2(x+1)"), true),
        ("The answer is not 5 but 6.", free("6"), true),
        ("The answer is 6 * 7 = 42 eggs, since each hen lays 7.", free("42"), true),
    ]);
}

#[test]
fn several_solutions() {
    check(&[
        (r"x = 3 \text{ or } x = -5", "3, -5", true),
        (r"x = 3 \text{ or } x = -5", "-5, 3", true),
        (r"\pm 2", "-2, 2", true),
        (r"\pm 2", "2, -2", true),
        (r"\pm 2", "2", false),
        ("x = 3, y = -5", "-5, 3", false),
        ("x = 3, y = -5", "3, -5", true),
        ("x = 3, y = -5", "y = -5, x = 3", true),
        (r"x=3 \text{ and } y=-5", "(3,-5)", true),
        ("3 or -5", r"\{-5, 3\}", true),
        (r"x = \pm\sqrt{2}", r"\sqrt{2}, -\sqrt{2}", true),
        (r"1 \pm \sqrt{3}", r"1-\sqrt3, 1+\sqrt3", true),
        (r"\frac{-1 \pm \sqrt{5}}{2}", r"\frac{-1+\sqrt5}{2}, \frac{-1-\sqrt5}{2}", true),
        ("x_1 = 1, x_2 = 2", "1, 2", true),
        ("x_1 = 1, x_2 = 2", "2, 1", true),
        ("x_1 = 1, x_2 = 2", "x_1 = 2, x_2 = 1", false),
        ("a_3 = 1, a_5 = 2", "2, 1", false),
        ("x = 1; x = 2", "2, 1", true),
        (r"x = 1 \quad\text{or}\quad x = 2", "1,2", true),
        (r"x = -2, 0, \text{and } 2", "0, 2, -2", true),
        (r"\{1\} \text{ and } \{2\}", "1, 2", true),
        (r"x=1 \lor x=2", "1,2", true),
        ("±3", "3, -3", true),
        ("+/-3", "3, -3", true),
        ("a=1,b=2,c=3", "(1,2,3)", true),
        ("a=1,b=2,c=3", "(3,2,1)", false),
        (r"(1,2) \text{ and } (3,4)", "(3,4),(1,2)", true),
        ("1 or 2 or 3", "3,2,1", true),
        ("1 or 2", "1, 2, 3", false),
        ("3 cats and 5 dogs", "5 cats and 3 dogs", false),
        (r"\pm 1, \pm 2", "-2,-1,1,2", true),
        (r"x=\pm 2, y = 3", "x = 2, y = 3", false),
    ]);
}

#[test]
fn answers_in_several_boxes_or_formulas() {
    check_replies(&[
        (r"So \boxed{3} or \boxed{-5}.", free("-5, 3"), true),
        (r"$\boxed{2}$ and $\boxed{7}$", free("7,2"), true),
        (r"\[\boxed{1} \quad \text{or} \quad \boxed{4}\]", free("4, 1"), true),
        (r"$x = \boxed{3}$ or $x = \boxed{-5}$", free("3,-5"), true),
        (r"\boxed{1}, \boxed{2}, and \boxed{3}", free("3,2,1"), true),
        (r"\boxed{6} apples and \boxed{8} pears", free("6, 8"), true),
        (r"\(\boxed{(1,2)}\) and \(\boxed{(2,1)}\)", free("(2,1),(1,2)"), true),
        (r"We get \boxed{4}. Checking again gives \boxed{5}.", free("5"), true),
        (r"\boxed{4}, no, \boxed{5}", free("5"), true),
        (r"\boxed{\frac{2}{4}} or equivalently \boxed{\frac{1}{2}}", free("1/2"), true),
        (r"\boxed{5} so the total is \boxed{10}", free("10"), true),
        (r"\boxed{2} = \boxed{2}", free("2"), true),
        ("\\boxed{3}\n\n**Final Answer**\n\\boxed{3}", free("3"), true),
        (r"$x=\boxed{3}$ and $y=\boxed{-5}$", free("(3,-5)"), true),
        ("The solutions are $x = 3$ and $x = -5$.", free("-5,3"), true),
        ("The answer is $x = 3$ or $x = -5$.", free("-5,3"), true),
        ("The answer is $3$ and $-5$, as shown above.", free("3,-5"), true),
        ("Answer: x = 3 or x = -5", free("-5, 3"), true),
    ]);
}

#[test]
fn lists_and_thousands() {
    check(&[
        ("100,200", "200, 100", true),
        ("100,200", "100200", false),
        ("200,100", "100, 200", true),
        ("100,200", r"\{100, 200\}", true),
        ("1,234", "1234", true),
        ("12,345", "12345", true),
        ("123,456", "123456", true),
        ("1,000,000", "1000000", true),
        ("1,234", "234, 1", true),
        ("100,200,300", "300,100,200", true),
        ("100,200,300", "100200300", false),
        ("150,250", "250,150", true),
        ("10,20", "20, 10", true),
        ("1,2,3", "3,2,1", true),
        ("1,2,3", "123", false),
        ("12,15", "1215", false),
        ("5,10,15", "15,10,5", true),
        (r"\$100,200", "100200", true),
        ("100,200 dollars", "100200", true),
        ("100{,}200", "100200", true),
        ("100,000", "100000", true),
        ("320,000", "3.2*10^5", true),
        ("1,500 and 2,500", "2500, 1500", true),
        ("100,200", "100, 200", true),
        ("999,999", "999999", true),
        ("250,500", "500,250", true),
        ("250,500", "250500", false),
        ("1234,5678", "12345678", false),
        ("1,22", "1.22", true),
        ("1000,99", "1000.99", true),
        ("3,14", "3.14", true),
        ("0,1", "1,0", true),
        ("1,234", "1.234", false),
    ]);
}

#[test]
fn entries_compare_as_answers_do() {
    check(&[
        (r"\begin{pmatrix} -1/3 \\ 2 \end{pmatrix}", r"\begin{pmatrix} -\frac{1}{3} \\ 2 \end{pmatrix}", true),
        (r"\begin{pmatrix} \frac{-1}{3} \\ 2 \end{pmatrix}", r"\begin{pmatrix} -\frac13 \\ 2 \end{pmatrix}", true),
        (r"\begin{pmatrix} 0.5 & 1 \end{pmatrix}", r"\begin{pmatrix} \frac12 & 1 \end{pmatrix}", true),
        (r"\begin{bmatrix} 1 & 2 \\ 3 & 4 \end{bmatrix}", r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", true),
        (r"\begin{pmatrix} 1 \\ 2 \\ \end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", true),
        (
            r"\left[\begin{array}{cc} 1 & 2 \\ 3 & 4 \end{array}\right]",
            r"\begin{bmatrix} 1 & 2 \\ 3 & 4 \end{bmatrix}",
            true,
        ),
        (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\begin{pmatrix} 1 & 3 \\ 2 & 4 \end{pmatrix}", false),
        (r"\begin{pmatrix} 1 & 2 & 3 \end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \\ 3 \end{pmatrix}", false),
        (r"\begin{vmatrix} 1 & 2 \\ 3 & 4 \end{vmatrix}", r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", false),
        (r"\begin{pmatrix} \sqrt{12} \\ 0 \end{pmatrix}", r"\begin{pmatrix} 2\sqrt{3} \\ 0 \end{pmatrix}", true),
        (r"\begin{pmatrix} 1{,}000 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 1000 \\ 2 \end{pmatrix}", true),
        (r"A = \begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{bmatrix} 1.0 \\ 2 \end{bmatrix}", true),
        (r"\begin{pmatrix} +1 \\ -0 \end{pmatrix}", r"\begin{pmatrix} 1 \\ 0 \end{pmatrix}", true),
        (r"\{-1/3, 0.5\}", r"\{\frac12, \frac{-1}{3}\}", true),
        (r"\{ \sqrt{8}, 1 \}", r"\{1, 2\sqrt{2}\}", true),
        (
            r"(-\infty, -1/3) \cup (0.5, \infty)",
            r"\left(-\infty, \frac{-1}{3}\right) \cup \left(\frac{1}{2}, \infty\right)",
            true,
        ),
        (r"(0.5, \infty) \cup (-\infty, -1/3)", r"(-\infty,-\frac13)\cup(\frac12,\infty)", true),
        (r"(-\infty, 1) \cup (3, \infty)", r"(-\infty, 1] \cup (3, \infty)", false),
        ("[-1, 0) ∪ (0, 1]", r"[-1,0)\cup(0,1]", true),
        (r"x \in [-1,0) \cup \{2\}", r"[-1,0)\cup\{2.0\}", true),
        (r"x < 1 \text{ or } x > 3", r"(-\infty,1)\cup(3,\infty)", true),
        (r"-1 \le x < 0.5", r"[-1,\frac12)", true),
        (r"x \ge -1/3", r"[-\frac{1}{3},\infty)", true),
        ("(1/2, -1/3)", r"\left(\frac{1}{2}, \frac{-1}{3}\right)", true),
        (r"(2\sqrt{3}, 1)", r"(\sqrt{12}, 1)", true),
        ("[0.5, 2]", r"\left[\frac{1}{2}, 2\right]", true),
        (r"\{x = 1, x = 2\}", r"\{1,2\}", true),
    ]);
}

#[test]
fn letters_are_found_where_they_are_stated() {
    check_replies(&[
        (r"So \boxed{\Delta E}. **Answer: D**", Choice('D'), true),
        ("### Final Answer\n\nD", Choice('D'), true),
        ("I choose D.", Choice('D'), true),
        ("Option D is right, since A needs 3", Choice('D'), true),
        ("\\boxed{C}\n\nAnswer: D is wrong.", Choice('C'), true),
        ("The answer is not B but D.", Choice('D'), true),
        ("The answer is D, not A.", Choice('D'), true),
        ("I would go with (C), as A and B are too small.", Choice('C'), true),
        ("My pick: B", Choice('B'), true),
        ("**C** is correct, because A and D fail.", Choice('C'), true),
        ("Therefore, the correct choice is (A).", Choice('A'), true),
        (r"The energy is \boxed{5\text{ eV}}, so the answer is (B).", Choice('B'), true),
        ("(D) 12 cm", Choice('D'), true),
        ("Of these, C is the best fit.", Choice('C'), true),
        ("Statement B is true, so B.", Choice('B'), true),
        ("A is wrong. B is wrong. So it must be C.", Choice('C'), true),
        ("I think the answer should be option B because option A has 3 and option C has 5.", Choice('B'), true),
        ("## Answer\n\n**(A)** 5 m/s", Choice('A'), true),
        (r"$\boxed{12}$ which is option **B**.", Choice('B'), true),
        ("We select answer choice E.", Choice('E'), true),
        (r"The final answer is $\text{(C)}$", Choice('C'), true),
        (r"\boxed{x^2}, matching (D)", Choice('D'), true),
        ("B or C", Choice('B'), false),
        ("The answer is A and C.", Choice('A'), false),
        ("A triangle has three sides.", Choice('A'), false),
        ("Answer: B) Paris. Option C) Rome is not the capital.", Choice('B'), true),
        ("Final Answer: C. I hope it is correct.", Choice('C'), true),
        ("Answer - D", Choice('D'), true),
        ("It's B.", Choice('B'), true),
        ("Hence, D is the right answer.", Choice('D'), true),
        ("Choose B, rather than C.", Choice('B'), true),
    ]);
}

/// Cases of others with their verdicts; `why` says why ours is another.
fn compare(cases: &str) -> (usize, usize) {
    let (mut all, mut differ) = (0, 0);
    for case in cases.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
        let text = |name: &str| case[name].as_str();
        let answer = match (text("gold"), text("letter")) {
            (Some(gold), _) => Answer::Free(extract(gold, Kind::Free).unwrap_or_default()),
            (_, Some(letter)) => Choice(letter.chars().next().unwrap()),
            _ => free(text("answer").unwrap()),
        };
        let equal = match text("found") {
            Some(found) => is_correct(found, &answer),
            None => is_right(text("reply").unwrap(), &answer),
        };
        let expected = case["equal"].as_bool().unwrap() != text("why").is_some();
        assert_eq!(equal, expected, "{case}");
        all += 1;
        differ += usize::from(text("why").is_some());
    }
    (all, differ)
}

/// Further cases of every kind, and pairs that are easily taken for equal.
#[test]
fn more_cases() {
    assert_eq!(compare(include_str!("grader/cases.jsonl")).1, 0);
}

/// The cases of Math-Verify 0.9.0's own tests that have a reply and a verdict, long ones cut to their end. The table of
/// differences is in docs/grading.md.
#[test]
fn as_math_verify() {
    let (all, differ) = compare(include_str!("grader/math_verify.jsonl"));
    assert!(all == 282 && 100 * differ <= 3 * all, "{differ} of {all}");
}

/// Verdicts of lm-eval 0.4.13's filters and its tests' expectations.
#[test]
fn as_lm_eval() {
    compare(include_str!("grader/lm_eval.jsonl"));
}

#[test]
fn remarks_signs_in_words_and_fractions_of_one_character() {
    for (reply, answer) in [
        ("the answer should be 18 apples (6 bags of 3).", "18"),
        ("The answer must be 18, i.e. 6 bags of 3.", "18"),
        ("So there are 18 apples (6 bags of 3).", "18"),
        ("She pays $45 in total (3 tickets at $15 each).", "45"),
        ("The answer would be 7.", "7"),
        ("The answer is minus 4.", "-4"),
        ("The answer is negative 12, since it falls.", "-12"),
        ("The answer is \u{bd}.", "1/2"),
        ("The answer is 2\u{2044}3.", "2/3"),
        ("The answer is 3\u{be}.", "15/4"),
    ] {
        let found = extract(reply, Kind::Free).unwrap();
        assert!(is_correct(&found, &Answer::Free(answer.into())), "{reply}: {found}");
        assert!(!is_correct(&found, &Answer::Free("99".into())), "{reply}: {found}");
    }
    assert!(!is_correct(&extract("The answer is minus 4.", Kind::Free).unwrap(), &Answer::Free("4".into())));
}
