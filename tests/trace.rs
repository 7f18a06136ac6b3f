//! The trace module against the vectors of the authors' trackers, and its laws on random text.

mod common;

use std::ops::Range;

use proptest::prelude::*;
use serde::Deserialize;
use stepflow::trace::{Family, Markers, Segment, Step, TraceFile, TraceToken, Tracker};

#[derive(Deserialize)]
struct Vectors {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    family: String,
    prompt_tokens: usize,
    pieces: Vec<String>,
    segments: Vec<u8>,
    window: usize,
    step_starts: Vec<[usize; 3]>,
}

fn markers_of(family: &str) -> Markers {
    match family {
        "deepseek-qwen" => Family::ThinkTags.markers(),
        "gpt-oss" => Family::Harmony.markers(),
        other => panic!("unknown family {other:?} in the vectors"),
    }
}

/// Segments and step starts ([position, window start, window end]) of a sequence.
fn track(tracker: &mut Tracker, pieces: &[String], prompt_tokens: usize, window: usize) -> (Vec<u8>, Vec<[usize; 3]>) {
    let mut segments = Vec::new();
    let mut starts = Vec::new();
    for (position, piece) in pieces.iter().enumerate() {
        let tracked = tracker.push(piece.as_bytes(), position >= prompt_tokens);
        segments.push(tracked.segment as u8);
        starts.extend(tracked.step_start.map(|start| {
            let Range { start: first, end } = start.previous;
            [start.position, first.max(end.saturating_sub(window)), end]
        }));
    }
    (segments, starts)
}

#[test]
fn steps_vectors() {
    for vectors in common::vectors::<Vectors>("steps") {
        for case in vectors.cases {
            let mut tracker = Tracker::new(markers_of(&case.family));
            let (segments, starts) = track(&mut tracker, &case.pieces, case.prompt_tokens, case.window);
            let name = format!("{} ({}, window {})", case.name, case.family, case.window);
            assert_eq!(segments, case.segments, "{name}");
            assert_eq!(starts, case.step_starts, "{name}");
            assert_partition(&tracker);
        }
    }
}

/// Tracks `(piece, generated)` pairs.
fn tracker_of<'a>(markers: Markers, tokens: impl IntoIterator<Item = (&'a str, bool)>) -> Tracker {
    let mut tracker = Tracker::new(markers);
    tokens.into_iter().for_each(|(piece, generated)| {
        tracker.push(piece.as_bytes(), generated);
    });
    tracker
}

fn assert_partition(tracker: &Tracker) {
    let mut end = 0;
    for Step { segment, tokens } in tracker.steps() {
        assert_eq!(tokens.start, end, "steps leave a gap or overlap");
        assert!(!tokens.is_empty(), "empty step at {end}");
        assert_eq!(tracker.segments()[tokens.start], segment, "segment of the step at {end}");
        end = tokens.end;
    }
    assert_eq!(end, tracker.len(), "steps do not cover all tokens");
}

/// The steps as text, each with the initial of its segment.
fn step_texts(tracker: &Tracker, pieces: &[&str]) -> Vec<String> {
    let text = |step: Step| format!("{}: {}", step.segment, pieces[step.tokens].concat());
    tracker.steps().into_iter().map(text).collect()
}

#[test]
fn steps_give_line_breaks_and_closing_markup_to_the_step_before() {
    let pieces = [
        "What?",
        "<",
        "think",
        ">",
        "\n",
        "It",
        " is",
        " a long sentence",
        ".",
        " ",
        "42",
        " is what it has to be.",
        "\n",
        "</",
        "think",
        ">",
        "\n\n",
        "It is",
        ":",
        "\n\n",
        "42",
    ];
    let tracker = tracker_of(Family::ThinkTags.markers(), pieces.iter().enumerate().map(|(i, &p)| (p, i > 4)));
    assert_eq!(
        step_texts(&tracker, &pieces),
        [
            "question: What?<think>\n",
            "thinking: It is a long sentence.",
            "thinking:  42 is what it has to be.\n</think>\n\n",
            "summary: It is:\n\n",
            "summary: 42",
        ]
    );
}

#[test]
fn harmony_closes_without_a_step_of_its_own() {
    let pieces = [
        "Q",
        "<|channel|>",
        "analysis",
        "<|message|>",
        "So it is forty-two.",
        "<|end|>",
        "<|start|>",
        "assistant",
        "<|channel|>",
        "final",
        "<|message|>",
        "42",
    ];
    let tracker = tracker_of(Family::Harmony.markers(), pieces.iter().map(|&p| (p, p != "Q")));
    let steps = tracker.steps();
    assert_eq!(steps.iter().map(|step| step.tokens.clone()).collect::<Vec<_>>(), [0..4, 4..11, 11..12]);
}

#[test]
fn an_empty_think_block_is_no_thinking_step() {
    let pieces = ["Q", "<think>", "\n\n", "</think>", "\n\n", "Forty", "-two."];
    for prompt_tokens in [1, 5] {
        let tokens = pieces.iter().enumerate().map(|(position, &piece)| (piece, position >= prompt_tokens));
        let tracker = tracker_of(Family::ThinkTags.markers(), tokens);
        assert_eq!(tracker.segments().last(), Some(&Segment::Summary));
        assert_eq!(
            step_texts(&tracker, &pieces),
            ["question: Q<think>\n\n</think>\n\n", "summary: Forty-two."],
            "{prompt_tokens} prompt tokens"
        );
    }
}

#[test]
fn only_the_marker_that_is_awaited_counts() {
    let markers = Family::ThinkTags.markers();
    let question = tracker_of(markers.clone(), [("What does </think> mean?", false), ("Well", true)]);
    assert!(question.segments().iter().all(|&segment| segment == Segment::Question));
    let pieces = [("<think>", true), ("A", true), ("</think>", true), ("<think>", true), ("B", true)];
    let summary = tracker_of(markers.clone(), pieces);
    assert_eq!(summary.segments().last(), Some(&Segment::Summary));
    let both = tracker_of(markers, [("<think></think>", true), ("B", true)]);
    assert_eq!(both.segments(), [Segment::Question, Segment::Summary]);
}

#[test]
fn implicit_thinking_starts_with_generation_in_every_turn() {
    let turn = [
        ("Q", false),
        ("It is surely so.", true),
        (" Then", true),
        ("**Final", true),
        (" Answer**", true),
        ("A", true),
    ];
    let mut tracker = tracker_of(Family::Implicit.markers(), turn);
    let one_turn = tracker.segments().to_vec();
    assert_eq!(one_turn.iter().map(|&segment| segment as u8).collect::<Vec<_>>(), [0, 1, 1, 1, 1, 2]);
    tracker.new_turn();
    assert_eq!(tracker.steps(), [Step { segment: Segment::Question, tokens: 0..6 }]);
    let starts: Vec<_> =
        turn.iter().filter_map(|(piece, generated)| tracker.push(piece.as_bytes(), *generated).step_start).collect();
    assert_eq!(tracker.segments()[6..], one_turn);
    assert_eq!(starts.len(), 1);
    assert_eq!((starts[0].position, starts[0].previous.clone()), (8, 7..8));
    assert_partition(&tracker);
}

/// The positions at which thinking steps but the first start, of tokens of bytes after `<think>`.
fn starts(tokens: &[&[u8]]) -> Vec<usize> {
    let mut tracker = Tracker::new(Family::ThinkTags.markers());
    tracker.push(b"<think>", false);
    let started = tokens.iter().filter_map(|token| tracker.push(token, true).step_start);
    started.map(|start| start.position - 1).collect()
}

#[test]
fn a_step_begins_at_the_first_token_of_its_first_character() {
    let stop = "我们先来计算一下鸭子每天下的蛋数。".as_bytes();
    for (next, kind) in
        [("然", "an ideograph"), ("そ", "kana"), ("फ", "Devanagari"), ("한", "Hangul"), ("😀", "an emoji")]
    {
        let bytes = next.as_bytes();
        for cut in 1..bytes.len() {
            assert_eq!(starts(&[stop, &bytes[..cut], &bytes[cut..], b"x"]), [1], "{kind}, cut after {cut}");
            let bare = &stop[..stop.len() - 1];
            assert_eq!(starts(&[bare, &stop[bare.len()..], &bytes[..cut], &bytes[cut..]]), [2], "{kind}, {cut}");
        }
    }
}

#[test]
fn a_cut_closing_mark_belongs_to_the_sentence_it_closes() {
    let stop = "我们先来计算一下鸭子每天下的蛋数。".as_bytes();
    for mark in ["」", "）", "！", "”", "》", "？"] {
        let bytes = mark.as_bytes();
        assert_eq!(starts(&[stop, &bytes[..2], &bytes[2..], "然".as_bytes()]), [3], "{mark}");
    }
    // An opening mark begins as closing ones do: the step begins after it, and not inside.
    let bytes = "《".as_bytes();
    assert_eq!(starts(&[stop, &bytes[..2], &bytes[2..], "然".as_bytes()]), [3]);
    assert_eq!(starts(&[stop, &bytes[..2], &[bytes[2], 0xE7], &[0x84, 0xB6], b"x"]), [4]);
}

#[test]
fn no_step_begins_inside_a_character() {
    // Of a blank line and of a marker, after which the same token begins a character.
    let pieces: [&[u8]; 5] =
        [b"The first of all is here\n\n\xE7", &[0x84, 0xB6], b"x</think>\xE7", &[0x84, 0xB6], b"y"];
    assert_eq!(starts(&pieces), [2]);
    let mut tracker = Tracker::new(Family::ThinkTags.markers());
    tracker.push(b"<think>", false);
    pieces.iter().for_each(|piece| {
        tracker.push(piece, true);
    });
    let steps: Vec<_> = tracker.steps().into_iter().map(|step| step.tokens).collect();
    assert_eq!(steps, [0..1, 1..3, 3..5, 5..6]);
}

/// The rows of the tables of a page: the section, and the example that a row has.
fn examples(page: &str) -> Vec<(&str, String)> {
    let (mut section, mut found) = ("", Vec::new());
    for line in page.lines() {
        section = line.strip_prefix("## ").unwrap_or(section);
        let example =
            line.strip_prefix('|').and_then(|row| row.strip_suffix("` |")).and_then(|row| row.rsplit_once("| `"));
        found.extend(example.map(|(_, text)| (section, text.replace("\\|", "|").replace('⏎', "\n"))));
    }
    found
}

/// A text with a bar wherever a step of thinking or summary begins, or the summary of a model that marks nothing.
fn marked(section: &str, text: &str) -> String {
    let (markers, before) = match section {
        "Thinking" => (Family::ThinkTags.markers(), "<think>"),
        "Summary" => (Family::ThinkTags.markers(), "<think></think>"),
        _ => (Family::Implicit.markers(), "Q"),
    };
    let mut tracker = Tracker::new(markers);
    tracker.push(before.as_bytes(), false);
    let mut buffer = [0; 4];
    let chars: Vec<char> = text.chars().collect();
    let mut bars: Vec<usize> = Vec::new();
    for c in &chars {
        let tracked = tracker.push(c.encode_utf8(&mut buffer).as_bytes(), true);
        bars.extend(tracked.step_start.filter(|_| section == "Thinking").map(|start| start.position));
    }
    let summary =
        tracker.steps().into_iter().filter(|step| step.segment == Segment::Summary).map(|step| step.tokens.start);
    match section {
        "Thinking" => {}
        "Summary" => bars.extend(summary.skip(1)),
        _ => bars.extend(tracker.segments().iter().position(|&segment| segment == Segment::Summary)),
    }
    let bar = |position: usize| if bars.contains(&position) { "¦" } else { "" };
    chars.iter().enumerate().map(|(i, c)| format!("{}{c}", bar(i + 1))).collect()
}

#[test]
fn the_page_of_rules_says_what_is_done() {
    let page = include_str!("../docs/steps.md");
    let examples = examples(page);
    let n = |name: &str| examples.iter().filter(|(section, _)| *section == name).count();
    assert!(n("Thinking") > 30 && n("Summary") == 1 && n("Answers of models that mark nothing") > 8);
    for (section, example) in examples {
        assert_eq!(marked(section, &example.replace('¦', "")), example, "{section}");
    }
}

#[test]
fn sentence_ends_of_many_scripts() {
    for example in [
        "धर्मक्षेत्रे कुरुक्षेत्रे समवेता॥¦ अब",
        "किसान हर दिन अंडे बेचता है॥१॥¦ अब",
        "পৃথিবীতে অনেক হাঁস আছে।¦ তারপর",
        "كم بيضة يبيع الفلاح كل يوم؟»¦ نحسب",
        "ገበሬው ስንት እንቁላል በየቀኑ ይሸጣል፧¦ አሁን",
        "កសិករលក់ស៊ុតជារៀងរាល់ថ្ងៃ។¦ឥឡូវ",
        "ܐܢܐ ܐܙܠ ܐܢܐ ܠܒܝܬܐ܀¦ ܗܫܐ",
        "ꦥꦿꦱꦧꦼꦤ꧀ꦢꦶꦤꦥꦼꦠꦤꦶ꧉¦ ꦱꦏꦶ",
        "Και πόσο κάνει τότε το 5 + 3;¦ Ας",
        "Και πόσο κάνει τότε το x;»¦ Ας",
        "Πόσα αυγά πουλάει ο αγρότης\u{37E}¦ Ας",
        "What on earth can that be‽¦ We",
        "Can this be true at all⁉¦ We",
        "Let me think about all of this……¦ So",
        "Фермер продаёт яйца на рынке…¦ Затем",
        "農家は毎日卵を十六個売るのである｡¦次に",
        "彼は毎日卵を売るのだと言ったのです？！¦次に",
        "彼は毎日卵を売るのだと言ったのです！?¦次に",
        "値は約3．14であると考えてよいだろう．¦次",
        "値は約３．１４と考えるのがよいだろうか．¦第2に",
        "彼は『毎日卵を必ず売るのだ｡』｣¦次に",
        "پی۔ایچ۔ڈی کی ڈگری حاصل کی۔¦ پھر",
        "let alpha be x; then beta is y; so",
    ] {
        assert_eq!(marked("Thinking", &example.replace('¦', "")), example);
    }
}

#[test]
fn items_of_many_kinds_of_lists() {
    for (one, two) in [
        ("-", "-"),
        ("*", "*"),
        ("+", "+"),
        ("•", "•"),
        ("◦", "◦"),
        ("–", "–"),
        ("—", "—"),
        ("▪", "▪"),
        ("1.", "2."),
        ("1)", "2)"),
        ("(1)", "(2)"),
        ("**1.**", "**2.**"),
        ("**1)**", "**2)**"),
        ("a)", "b)"),
        ("(a)", "(b)"),
        ("A.", "B."),
        ("①", "②"),
        ("1、", "2、"),
        ("一、", "二、"),
        ("（1）", "（2）"),
        ("１．", "２．"),
        ("१.", "२."),
        ("١.", "٢."),
        ("10.", "11."),
        ("- [ ]", "- [x]"),
    ] {
        let list = format!("{one} the farm has ducks\n¦{two} each duck lays eggs\n¦So it goes on\nand on");
        assert_eq!(marked("Thinking", &list.replace('¦', "")), list);
        let known = format!("We know this of it:\n¦{list}");
        if !one.starts_with(|c: char| c.is_ascii_alphabetic()) {
            assert_eq!(marked("Thinking", &known.replace('¦', "")), known);
        }
    }
    let short = "We know this of it:\n¦- one\n- two\n- three of them all\n¦- four";
    assert_eq!(marked("Thinking", &short.replace('¦', "")), short);
}

#[test]
fn answers_of_models_that_mark_nothing() {
    for example in [
        "Answer:¦ 8",
        "It is 3 plus 5.\n\n**Final Answer**¦: 8",
        "It is 3 plus 5.\n\n**The answer:¦** 8",
        "It is 3 plus 5.\n- **Answer:¦** 8",
        "It is 3 plus 5.\nAnswer :¦ 8",
        "It is 3 plus 5.\nAnswer：¦8",
        "我们得到三加五。Answer:¦ 8",
        "It is 3 plus 5. Hence the final answer is¦: 8",
        "It is 3 plus 5.\nThe **final answer** is¦ 8",
        "It is 3 plus 5.\n\\[\n\\boxed{¦8}\n\\]\nAnswer: 8",
        "It is 3 plus 5.\n#### Answer:¦ 8",
        "It is 3 plus 5.\nOur final answer:¦ 8",
        "A final answer is what we seek. It is so",
        "The answer\nis not known yet: it",
        "The box is \\boxed and then {8}",
    ] {
        assert_eq!(marked("Answers", &example.replace('¦', "")), example);
    }
    let segments =
        |pieces: &[&str]| tracker_of(Family::Implicit.markers(), pieces.iter().map(|&p| (p, true))).segments().to_vec();
    assert_eq!(segments(&["Put", " it", " in", " \\", "boxed", "{}", ". So"]), [Segment::Thinking; 7]);
    assert_eq!(segments(&["So", " the", " final", " answer", " isn", "'t", " 8"])[6], Segment::Thinking);
    assert_eq!(segments(&["The", " final", " answer", " is", " ", "8"])[4..], [Segment::Summary; 2]);
    let tags = tracker_of(Family::ThinkTags.markers(), [("<think>", false), ("Answer: \\boxed{8}", true), ("x", true)]);
    assert_eq!(tags.segments()[2], Segment::Thinking, "where thinking is marked, nothing else closes it");
}

#[test]
fn the_opening_of_an_answer_is_no_step_of_its_own() {
    let pieces = ["Q", "It is surely three plus five.", "\n\n", "\\[\n", "\\boxed{", "8}", "\n\\]"];
    let tracker = tracker_of(Family::Implicit.markers(), pieces.iter().map(|&p| (p, p != "Q")));
    assert_eq!(
        step_texts(&tracker, &pieces),
        ["question: Q", "thinking: It is surely three plus five.\n\n\\[\n\\boxed{", "summary: 8}\n\\]"]
    );
    let pieces = ["Q", "It is surely three plus five.", "\n", "**", "Answer", ":", "**", " 8"];
    let tracker = tracker_of(Family::Implicit.markers(), pieces.iter().map(|&p| (p, p != "Q")));
    assert_eq!(
        step_texts(&tracker, &pieces),
        ["question: Q", "thinking: It is surely three plus five.\n**Answer:", "summary: ** 8"]
    );
}

/// A trace of `(piece, generated)` pairs by these markers.
fn trace_of(markers: Markers, tokens: &[(&str, bool)]) -> TraceFile {
    let tracker = tracker_of(markers.clone(), tokens.iter().copied());
    let labelled = (0..).zip(tokens).zip(tracker.segments());
    let token = |((id, (piece, _)), &segment): ((i32, &(&str, bool)), &Segment)| TraceToken {
        id,
        piece: piece.as_bytes().to_vec(),
        segment,
    };
    let model = serde_json::Map::new();
    TraceFile {
        model,
        family: Family::Implicit,
        markers,
        tokens: labelled.map(token).collect(),
        steps: tracker.steps(),
    }
}

/// The segments of a trace that was tracked by one pair of marks, by others; each as its number.
fn relabelled(before: Markers, tokens: &[(&str, bool)], after: &Markers) -> Option<Vec<u8>> {
    let trace = trace_of(before, tokens).relabelled(Family::Custom, after)?;
    let mut json = Vec::new();
    trace.write(&mut json).unwrap();
    assert_eq!(TraceFile::read(&json).unwrap(), trace, "its steps cover it");
    Some(trace.tokens.iter().map(|token| token.segment as u8).collect())
}

#[test]
fn a_trace_can_be_labelled_by_other_marks() {
    let (none, tags) = (Family::Implicit.markers(), Family::ThinkTags.markers());
    let notes = tags.clone().with(Some("<note>"), Some("</note>"));
    let of = |tokens: &[(&str, bool)], after: &Markers| relabelled(none.clone(), tokens, after);
    let generated = [("Q <note>", false), ("<no", true), ("te>", true), ("So.", true), ("</note>", true), ("4", true)];
    assert_eq!(of(&generated, &notes).unwrap(), [0, 0, 0, 1, 1, 2], "what a user writes is no mark");
    let opened = [("Q", false), ("<note>\n", false), ("So.", true), ("</note>", true), ("4", true)];
    assert_eq!(of(&opened, &notes).unwrap(), [0, 0, 1, 1, 2], "a template opens thinking");
    let spoken = [("Use <note>!", false), ("So.", true), ("</note>", true), ("4", true)];
    assert_eq!(of(&spoken, &notes), None);
    assert_eq!(of(&spoken, &none.clone().with(None, Some("</note>"))).unwrap(), [0, 1, 1, 2]);
    assert_eq!(of(&spoken, &none).unwrap(), [0, 1, 1, 1]);
    // Nothing fitted before: all is question.
    let all = |after: &Markers| relabelled(tags.clone(), &generated, after);
    assert_eq!(all(&notes).unwrap(), [0, 0, 0, 1, 1, 2]);
    assert_eq!((all(&tags), all(&none)), (None, None));
    assert_eq!(of(&[], &notes), None);
}

#[test]
fn named_marks_alone_count() {
    let markers = Family::Implicit.markers();
    assert!(markers.answers && markers.clone().with(Some("<r>"), None).answers);
    let named = markers.with(None, Some("END"));
    assert_eq!((named.answers, named.think_end.as_str(), named.closing().as_str()), (false, "END", "\"END\""));
    let old: Markers = serde_json::from_str(r#"{"think_start": null, "think_end": "**Final Answer**"}"#).unwrap();
    assert!(!old.answers, "as it was when the trace was written");
}

#[test]
fn a_family_fits_a_vocabulary_or_a_template() {
    let has = |tokens: &'static [&'static str]| move |text: &str| tokens.contains(&text);
    assert!(Family::Harmony.fits(has(&["<|channel|>", "<|message|>"]), None));
    assert!(!Family::Harmony.fits(has(&["<think>", "</think>"]), Some("<think> <|channel|>")));
    assert!(
        Family::ThinkTags.fits(has(&["<think>", "</think>"]), None)
            && Family::ThinkTags.fits(has(&[]), Some("</think>"))
    );
    assert!(!Family::ThinkTags.fits(has(&["<think>"]), Some("{{ messages }}")));
    assert!(Family::Implicit.fits(has(&[]), None) && Family::Custom.fits(has(&[]), None));
}

/// What matters to the rules.
const PARTS: &[&str] = &[
    "<think>",
    "</think>",
    "<|end|>",
    "The farmer sells eggs",
    "So it is",
    " ",
    " ",
    "\n",
    "\n\n",
    ".",
    ". ",
    "!",
    "?",
    "...",
    ".\"",
    "3.14",
    "e.g.",
    "1. ",
    "| a | b |\n",
    "----",
    "。",
    "鸭子每天下的蛋",
    "é",
    "**",
    "```",
    "<",
    "- ",
    "  * ",
    "2) ",
    ":\n",
    "Answer:",
    "\\boxed{",
];

fn text() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(PARTS), 0..40).prop_map(|parts| parts.concat())
}

/// Text with places to split it at, in bytes.
fn split_text() -> impl Strategy<Value = (String, Vec<usize>)> {
    text().prop_flat_map(|text| {
        let places = prop::collection::vec(0..=text.len(), 0..60);
        (Just(text), places)
    })
}

fn split<'a>(text: &'a [u8], places: &[usize]) -> Vec<&'a [u8]> {
    let mut places = places.to_vec();
    places.extend([0, text.len()]);
    places.sort_unstable();
    places.dedup();
    places.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect()
}

/// The bytes at which the tokens that start a step begin, and the byte at which the segments change.
fn boundaries(pieces: &[&[u8]]) -> (Vec<usize>, Vec<(usize, Segment)>) {
    let mut tracker = Tracker::new(Family::ThinkTags.markers());
    let (mut starts, mut changes, mut offset) = (Vec::new(), vec![(0, Segment::Question)], 0);
    for piece in pieces {
        let tracked = tracker.push(piece, true);
        starts.extend(tracked.step_start.map(|_| offset));
        if changes.last().is_none_or(|&(_, segment)| segment != tracked.segment) {
            changes.push((offset, tracked.segment));
        }
        offset += piece.len();
    }
    (starts, changes)
}

proptest! {
    #[test]
    fn boundaries_do_not_depend_on_the_split((text, places) in split_text()) {
        let text = format!("Q<think>{text}");
        // Anywhere but inside of a mark that begins like others, or behind the first marker: it would hide the first step.
        let inside = |place: usize| (1..3).any(|n| place >= n && text[..].get(place - n..).is_some_and(|t| t.starts_with('。')));
        let mut places: Vec<usize> = places.into_iter().filter(|&place| !inside(place)).collect();
        places.push("Q<think>".len());
        let coarse = split(text.as_bytes(), &places);
        let every: Vec<usize> = text.char_indices().map(|(place, _)| place).collect();
        let (fine_starts, fine_changes) = boundaries(&split(text.as_bytes(), &every));
        let (starts, changes) = boundaries(&coarse);

        let offsets = || coarse.iter().scan(0, |offset, piece| Some((std::mem::replace(offset, *offset + piece.len()), *offset)));
        let token_at_or_after = |byte: usize| offsets().map(|(start, _)| start).find(|&start| start >= byte);
        let indentation = |start: usize, byte: usize| text[start..byte].bytes().all(|byte| byte == b' ');
        let token_of_step = |byte: usize| {
            let begins = |&(start, end): &(usize, usize)| start >= byte || end > byte && indentation(start, byte);
            offsets().filter(|&(start, _)| text.is_char_boundary(start)).find(begins).map(|(start, _)| start)
        };
        let end_of_first = |segment| changes.iter().find(|change| change.1 > segment).map_or(text.len(), |change| change.0);
        let first = changes.iter().find(|change| change.1 == Segment::Thinking).map_or(text.len(), |change| change.0);
        let mut expected: Vec<usize> = fine_starts.into_iter().filter_map(token_of_step).collect();
        expected.dedup();
        // A step that begins with the first thinking token is the first; one that begins after the last is none.
        expected.retain(|&byte| byte > first && byte < end_of_first(Segment::Thinking));
        prop_assert_eq!(starts, expected);

        for (byte, segment) in changes.into_iter().skip(1) {
            let fine = fine_changes.iter().find(|change| change.1 == segment).map(|change| change.0);
            prop_assert_eq!(fine.and_then(token_at_or_after), Some(byte));
        }
    }

    #[test]
    fn steps_partition_the_tokens((text, places) in split_text(), prompt in 0usize..20, implicit: bool) {
        let markers = if implicit { Family::Implicit } else { Family::ThinkTags }.markers();
        let mut tracker = Tracker::new(markers);
        for (position, piece) in split(text.as_bytes(), &places).into_iter().enumerate() {
            tracker.push(piece, position >= prompt);
            assert_partition(&tracker);
        }
        let pieces = split(text.as_bytes(), &places);
        for step in tracker.steps() {
            let offset: usize = pieces[..step.tokens.start].iter().map(|piece| piece.len()).sum();
            prop_assert!(text.is_char_boundary(offset), "a step begins inside a character, at byte {offset}");
        }
    }

    #[test]
    fn truncation_leaves_what_the_rest_alone_would_give(
        (text, places) in split_text(), prompt in 0usize..8, turn in 0usize..40, kept in 0usize..40,
    ) {
        let text = format!("<think>{text}");
        let pieces = split(text.as_bytes(), &places);
        let feed = |count: usize| {
            let mut tracker = Tracker::new(Family::ThinkTags.markers());
            for (position, piece) in pieces[..count].iter().enumerate() {
                if position == turn {
                    tracker.new_turn();
                }
                tracker.push(piece, position >= prompt);
            }
            tracker
        };
        let kept = kept.min(pieces.len());
        prop_assume!(kept != turn);
        let mut truncated = feed(pieces.len());
        truncated.truncate(kept);
        prop_assert_eq!(truncated, feed(kept));
    }

    #[test]
    fn removal_leaves_what_the_rest_alone_would_give(
        (text, places) in split_text(), prompt in 0usize..8, turn in 0usize..40, start in 0usize..40, n in 0usize..10,
    ) {
        let text = format!("<think>{text}");
        let pieces = split(text.as_bytes(), &places);
        let (start, end) = (start.min(pieces.len()), (start + n).min(pieces.len()));
        // Where a turn begins among what goes, it begins behind it.
        let turn = if (start..end).contains(&turn) { end } else { turn };
        prop_assume!(turn != start || start == end);
        let feed = |removed: Range<usize>| {
            let mut tracker = Tracker::new(Family::ThinkTags.markers());
            for (position, piece) in pieces.iter().enumerate().filter(|(position, _)| !removed.contains(position)) {
                if position == turn {
                    tracker.new_turn();
                }
                tracker.push(piece, position >= prompt);
            }
            tracker
        };
        let mut tracker = feed(0..0);
        tracker.remove(start..end);
        prop_assert_eq!(tracker, feed(start..end));
    }

    #[test]
    fn trace_files_round_trip((text, places) in split_text(), name in ".*") {
        let file = trace_file(&text, &places, name);
        let mut json = Vec::new();
        file.write(&mut json).unwrap();
        prop_assert_eq!(TraceFile::read(&json).unwrap(), file);
    }

    #[test]
    fn damaged_trace_files_never_panic(
        (text, places) in split_text(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), prop::sample::select(b"0129-\"{}[],:aqt\\\xFF".as_slice())), 1..6),
    ) {
        let mut json = Vec::new();
        trace_file(&text, &places, "m".into()).write(&mut json).unwrap();
        for (place, byte) in edits {
            let place = place.index(json.len());
            json[place] = byte;
        }
        if let Err(error) = TraceFile::read(&json) {
            prop_assert!(!error.to_string().contains('\n'), "{error}");
        }
    }
}

fn trace_file(text: &str, places: &[usize], name: String) -> TraceFile {
    let text = format!("Q<think>{text}");
    let mut tracker = Tracker::new(Family::ThinkTags.markers());
    let mut tokens = Vec::new();
    for (id, piece) in (0..).zip(split(text.as_bytes(), places)) {
        let segment = tracker.push(piece, true).segment;
        tokens.push(TraceToken { id, piece: piece.to_vec(), segment });
    }
    TraceFile {
        model: [("name".to_owned(), name.into())].into_iter().collect(),
        family: Family::ThinkTags,
        markers: Family::ThinkTags.markers(),
        tokens,
        steps: tracker.steps(),
    }
}
