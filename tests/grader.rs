//! Grading of answers: which pairs are equal, and what a reply's final answer is.

use stepflow::eval::grade::{Answer, canonical, extract, is_correct};

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
        ("Answer: it costs $5, not $6 each", Some("6")),
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
        assert_eq!(extract(reply).as_deref(), answer, "{reply}");
    }
}
