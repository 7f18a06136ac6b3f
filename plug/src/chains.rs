//! Which text each token continues. A runtime tells no sequences: a token's parent is the visible cell with the position
//! before its own, and a chain is what such cells add up to from position 0 on.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;

use stepflow_core::graph::{Row, Token};
use stepflow_core::trace::{Markers, Segment, Tracked, Tracker};

/// From so many chains on, those that have no cell any more go, down to half of it.
const MAX_CHAINS: usize = 512;

/// A token of a graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Its number; `None` where the runtime gave an embedding instead.
    pub token: Option<i32>,
    /// Its position.
    pub position: usize,
    /// Its cell, counted over all streams.
    pub cell: usize,
    /// Its stream's first cell.
    pub first_cell: usize,
}

/// What happened to chains with a graph, which the books of the caches have to follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A chain begins with the first tokens of another.
    Fork { from: u32, to: u32, n: usize },
    /// All that a chain holds so far is question: another prompt came.
    Question(u32),
    /// A chain lost some of its tokens, and those behind them moved up.
    Removed { chain: u32, positions: Range<usize> },
    /// A chain is not continued any more.
    Forget(u32),
}

/// The chains of one cache.
#[derive(Debug)]
pub struct Chains {
    markers: Markers,
    chains: BTreeMap<u32, Chain>,
    next: u32,
    /// The chain that each cell was written for, and its position.
    cells: HashMap<usize, (u32, usize)>,
    /// With more chains than this, some are looked for that can go.
    most: usize,
}

#[derive(Debug, Clone)]
struct Chain {
    /// `None` where something of it was written unseen: its rows are left alone.
    tracker: Option<Tracker>,
    /// Its tokens, those of the tracker.
    tokens: Vec<i32>,
    len: usize,
    /// The cell of its last token.
    tip: usize,
    /// Whether it began as another.
    is_fork: bool,
    /// Whether its last token was generated, rather than part of a prompt.
    generated: bool,
    /// Whether its prompt leaves thinking open.
    open: bool,
}

impl Chains {
    pub fn new(markers: Markers) -> Self {
        Self { markers, chains: BTreeMap::new(), next: 0, cells: HashMap::new(), most: MAX_CHAINS }
    }

    /// Labels the tokens of a graph. `visible(row, cell)` says whether a row sees a cell of its stream, counted over all
    /// streams; `piece` is a token's text. Returns a row for each, and what happened on the way. Rows of `unknown` chains
    /// are question, which nothing is done to.
    pub fn label(
        &mut self,
        places: &[Place],
        visible: impl Fn(usize, usize) -> bool,
        piece: impl Fn(i32) -> Vec<u8>,
    ) -> (Vec<Row>, Vec<Event>, usize) {
        let mut events = Vec::new();
        let (mut of_row, mut is_tip) = (Vec::with_capacity(places.len()), Vec::with_capacity(places.len()));
        for (i, place) in places.iter().enumerate() {
            let (chain, tip) = self.continued(i, place, places, &visible, &mut events);
            of_row.push(chain);
            is_tip.push(tip);
            self.cells.insert(place.cell, (chain, place.position));
        }
        let mut rows: Vec<Row> = places
            .iter()
            .zip(&of_row)
            .map(|(place, chain)| Row {
                sequence: *chain,
                ..Row::plain(Token(place.token.unwrap_or(-1)), place.position)
            })
            .collect();
        let mut by_chain: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        of_row.iter().enumerate().for_each(|(i, chain)| by_chain.entry(*chain).or_default().push(i));
        let mut unknown = 0;
        for (id, own) in by_chain {
            let generated = own.len() == 1 && is_tip[own[0]];
            let Some(chain) = self.chains.get_mut(&id) else { continue };
            let tokens: Option<Vec<i32>> = own.iter().map(|i| places[*i].token).collect();
            let (Some(tokens), Some(tracker)) = (tokens, chain.tracker.as_mut()) else {
                chain.tracker = None;
                unknown += own.len();
                continue;
            };
            chain.tokens.extend(&tokens);
            let pieces: Vec<_> = tokens.into_iter().map(&piece).collect();
            let tracked = match generated {
                true => {
                    if !chain.generated && !chain.open {
                        // A prompt that opens no answer: the first generated token opens it.
                        tracker.new_turn();
                    }
                    pieces.iter().map(|piece| tracker.push(piece, true)).collect()
                }
                false => {
                    if chain.generated {
                        tracker.new_turn();
                        chain.open = false;
                        events.push(Event::Question(id));
                    }
                    push_prompt(tracker, &self.markers, &pieces, &mut chain.open)
                }
            };
            chain.generated = generated;
            for (i, Tracked { segment, step_start }) in own.into_iter().zip(tracked) {
                (rows[i].segment, rows[i].previous_step) = (segment, step_start.map(|start| start.previous));
            }
        }
        self.prune(&mut events);
        (rows, events, unknown)
    }

    /// Positions of cells were moved by so much, as where a full context makes room: what lay in between is gone.
    pub fn shift(&mut self, by: impl Fn(usize) -> i64) -> Vec<Event> {
        let mut moved: BTreeMap<u32, BTreeMap<usize, (usize, i64)>> = BTreeMap::new();
        for (cell, (id, position)) in &mut self.cells {
            match by(*cell) {
                0 => {}
                by => {
                    moved.entry(*id).or_default().insert(*cell, (*position, by));
                    *position = position.saturating_add_signed(by as isize);
                }
            }
        }
        moved.into_iter().filter_map(|(id, moved)| self.remove(id, &moved)).collect()
    }

    /// What a chain has lost, of which these cells were at these positions and moved by so much.
    fn remove(&mut self, id: u32, moved: &BTreeMap<usize, (usize, i64)>) -> Option<Event> {
        let chain = self.chains.get_mut(&id)?;
        let (first, by) = moved.values().copied().min()?;
        let n = usize::try_from(-by).ok().filter(|n| *n <= first);
        let together = moved.values().all(|(_, other)| *other == by) && moved.len() == chain.len - first;
        let Some(n) = n.filter(|_| together && !chain.is_fork) else {
            // Moved some other way: nothing is known of it any more.
            chain.tracker = None;
            return None;
        };
        let removed = first - n..first;
        chain.len -= n;
        if let Some(tracker) = &mut chain.tracker {
            tracker.remove(removed.clone());
            chain.tokens.drain(removed.clone());
        }
        // The cells of what is gone are free.
        self.cells.retain(|cell, (owner, at)| *owner != id || *at < removed.start || moved.contains_key(cell));
        Some(Event::Removed { chain: id, positions: removed })
    }

    /// The texts with an answer: their tokens, and the segments and steps of these.
    pub fn texts(&self) -> impl Iterator<Item = (&[i32], &Tracker)> {
        let known = self.chains.values().filter_map(|chain| Some((&chain.tokens[..], chain.tracker.as_ref()?)));
        known.filter(|(_, tracker)| tracker.segments().iter().any(|segment| *segment != Segment::Question))
    }

    /// Cells that were written outside of any graph: nothing is known of them any more.
    pub fn lose(&mut self, cells: std::ops::Range<usize>) {
        self.cells.retain(|cell, _| !cells.contains(cell));
    }

    /// The chain that a row continues or begins, and whether it is the next token of one that is known to its end.
    fn continued(
        &mut self,
        row: usize,
        place: &Place,
        places: &[Place],
        visible: &impl Fn(usize, usize) -> bool,
        events: &mut Vec<Event>,
    ) -> (u32, bool) {
        let parent = place.position.checked_sub(1).map(|before| self.parent(row, place, before, places, visible));
        match parent {
            // A text begins.
            None => (self.begin(Some(Tracker::new(self.markers.clone())), Vec::new(), place), false),
            // Its beginning was written unseen.
            Some(None) => (self.begin(None, Vec::new(), place), false),
            Some(Some((cell, id))) => {
                let Some(chain) = self.chains.get_mut(&id) else { return (self.begin(None, Vec::new(), place), false) };
                if chain.tip == cell && chain.len == place.position {
                    (chain.tip, chain.len) = (place.cell, place.position + 1);
                    return (id, true);
                }
                let mut tracker = chain.tracker.clone();
                if let Some(tracker) = &mut tracker {
                    tracker.truncate(place.position);
                }
                let tokens = chain.tokens.iter().copied().take(place.position).collect();
                let to = self.begin(tracker, tokens, place);
                events.push(Event::Fork { from: id, to, n: place.position });
                (to, false)
            }
        }
    }

    fn begin(&mut self, tracker: Option<Tracker>, tokens: Vec<i32>, place: &Place) -> u32 {
        let id = self.next;
        self.next += 1;
        let (len, tip) = (place.position + 1, place.cell);
        let chain = Chain { tracker, tokens, is_fork: place.position > 0, len, tip, generated: false, open: false };
        self.chains.insert(id, chain);
        id
    }

    /// The cell that a row follows on, and its chain: most often that of the row before.
    fn parent(
        &self,
        row: usize,
        place: &Place,
        position: usize,
        places: &[Place],
        visible: &impl Fn(usize, usize) -> bool,
    ) -> Option<(usize, u32)> {
        let fits = |cell: usize| {
            let (chain, at) = *self.cells.get(&cell)?;
            (at == position && visible(row, cell)).then_some((cell, chain))
        };
        let before = places[..row].iter().rev();
        let near = before.filter(|other| other.first_cell == place.first_cell).find_map(|other| fits(other.cell));
        // Of cells that fit, the one whose chain ends there: others share its beginning.
        let ends = |found: &(usize, u32)| self.chains.get(&found.1).is_some_and(|chain| chain.tip == found.0);
        near.or_else(|| {
            let all: Vec<_> = self.tips().filter_map(fits).collect();
            all.iter().copied().find(ends).or(all.first().copied()).or_else(|| self.anywhere(position, row, visible))
        })
    }

    /// The cells that chains end in.
    fn tips(&self) -> impl Iterator<Item = usize> {
        self.chains.values().map(|chain| chain.tip)
    }

    /// A cell in the middle of a chain.
    fn anywhere(&self, position: usize, row: usize, visible: &impl Fn(usize, usize) -> bool) -> Option<(usize, u32)> {
        let mut fits = self.cells.iter().filter(|(_, (_, at))| *at == position).map(|(cell, (id, _))| (*cell, *id));
        fits.find(|(cell, _)| visible(row, *cell))
    }

    /// Lets go of texts that have no cell any more, the oldest first: no token can continue them.
    fn prune(&mut self, events: &mut Vec<Event>) {
        if self.chains.len() <= self.most {
            return;
        }
        let held: HashSet<u32> = self.cells.values().map(|(id, _)| *id).collect();
        let over: Vec<u32> = self.chains.keys().copied().filter(|id| !held.contains(id)).collect();
        let n = self.chains.len().saturating_sub(MAX_CHAINS / 2);
        for id in over.into_iter().take(n) {
            self.chains.remove(&id);
            events.push(Event::Forget(id));
        }
        // Looking for them takes a while where there are many cells.
        self.most = MAX_CHAINS.max(2 * self.chains.len());
    }
}

/// Takes part of a prompt. All of it is question, whatever it says, but for a thinking that it leaves `open` at its end:
/// markers of earlier answers do not count.
fn push_prompt(tracker: &mut Tracker, markers: &Markers, pieces: &[Vec<u8>], open: &mut bool) -> Vec<Tracked> {
    let text: Vec<u8> = pieces.concat();
    let last = |marker: &str| text.windows(marker.len()).rposition(|bytes| bytes == marker.as_bytes());
    let opens = markers.think_start.as_deref().and_then(last);
    let closes = last(&markers.think_end);
    let at = opens.filter(|at| closes.is_none_or(|closes| closes < *at));
    let mut ends = pieces.iter().scan(0, |end, piece| {
        *end += piece.len();
        Some(*end)
    });
    let opening = at.and_then(|at| ends.position(|end| end > at));
    *open = opening.is_some() || (*open && closes.is_none());
    let question = opening.unwrap_or(if *open { 0 } else { pieces.len() });
    let push = |(i, piece): (usize, &Vec<u8>)| {
        if Some(i) == opening {
            tracker.new_turn();
        }
        let tracked = tracker.push(piece, false);
        if i < question { Tracked { segment: Segment::Question, step_start: None } } else { tracked }
    };
    pieces.iter().enumerate().map(push).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use stepflow_core::trace::Family;

    /// A model whose tokens are the bytes of a text, and a cache whose cells are seen by position alone.
    struct Texts {
        chains: Chains,
        seen: HashMap<usize, usize>,
    }

    impl Texts {
        fn new(family: Family) -> Self {
            Self { chains: Chains::new(family.markers()), seen: HashMap::new() }
        }

        /// Runs `text` at `position` on, in the cells from `cell` on; all cells in `context` and its own are seen.
        fn run(&mut self, text: &str, position: usize, cell: usize, context: &[usize]) -> (String, Vec<Row>) {
            let place = |(i, byte): (usize, u8)| Place {
                token: Some(byte.into()),
                position: position + i,
                cell: cell + i,
                first_cell: 0,
            };
            let places: Vec<_> = text.bytes().enumerate().map(place).collect();
            places.iter().for_each(|place| _ = self.seen.insert(place.cell, place.position));
            let visible = |row: usize, at: usize| context.contains(&at) || (cell..=cell + row).contains(&at);
            let (rows, _, unknown) = self.chains.label(&places, visible, |token| vec![token as u8]);
            assert_eq!(unknown, 0);
            (rows.iter().map(|row| ['q', 't', 's'][row.segment as usize]).collect(), rows)
        }

        fn generate(&mut self, text: &str, position: usize, cell: usize, context: &[usize]) -> String {
            let cells: Vec<_> = context.iter().copied().chain(cell..cell + text.len()).collect();
            let step = |(i, c): (usize, char)| self.run(&c.to_string(), position + i, cell + i, &cells).0;
            text.chars().enumerate().map(step).collect()
        }
    }

    #[test]
    fn prompts_are_question_and_thinking_is_found() {
        let mut texts = Texts::new(Family::ThinkTags);
        let prompt = "U<think>a</think>b A";
        assert_eq!(texts.run(prompt, 0, 0, &[]).0, "q".repeat(prompt.len()));
        let n = prompt.len();
        let context: Vec<_> = (0..n).collect();
        assert_eq!(texts.generate("<think>So.</think>x", n, n, &context), "qqqqqqqtttttttttttss"[..19].to_owned());
    }

    #[test]
    fn a_prompt_that_opens_thinking() {
        let mut texts = Texts::new(Family::ThinkTags);
        assert_eq!(texts.run("Q<think>\n", 0, 0, &[]).0, "qqqqqqqqt");
        let context: Vec<_> = (0..9).collect();
        assert_eq!(texts.generate("ab", 9, 9, &context), "tt");
    }

    #[test]
    fn two_texts_with_one_beginning() {
        let mut texts = Texts::new(Family::Implicit);
        texts.run("QQ", 0, 0, &[]);
        assert_eq!(texts.generate("abc", 2, 2, &[0, 1]), "ttt");
        // The same prompt again, in the same cells, then another answer.
        let (labels, rows) = texts.run("Q", 1, 5, &[0]);
        assert_eq!((labels.as_str(), rows[0].sequence), ("q", 1));
        assert_eq!(texts.generate("xy", 2, 6, &[0, 5]), "tt");
        assert_eq!(texts.generate("d", 5, 8, &[0, 1, 2, 3, 4]), "t", "the first goes on");
    }

    #[test]
    fn what_many_texts_begin_with_is_kept() {
        let mut texts = Texts::new(Family::Implicit);
        texts.run("system", 0, 0, &[]);
        let context: Vec<_> = (0..6).collect();
        // Each takes the cells of the one before.
        for _ in 0..3 * MAX_CHAINS {
            texts.run("Q", 6, 6, &context);
            assert_eq!(texts.generate("a", 7, 7, &[&context[..], &[6]].concat()), "t");
        }
        assert!(texts.chains.chains.len() <= MAX_CHAINS + 1, "{}", texts.chains.chains.len());
    }

    #[test]
    fn a_full_context_makes_room() {
        let mut texts = Texts::new(Family::Implicit);
        texts.run("QQ", 0, 0, &[]);
        texts.generate("One. Two. Three.", 2, 2, &[0, 1]);
        // Behind the prompt five tokens go, and what follows moves up.
        let events = texts.chains.shift(|cell| if cell >= 7 { -5 } else { 0 });
        assert_eq!(events, [Event::Removed { chain: 0, positions: 2..7 }]);
        let context: Vec<_> = (0..2).chain(7..18).collect();
        assert_eq!(texts.generate(" Four.", 13, 18, &context), "tttttt", "the text goes on");
        assert_eq!(texts.chains.texts().map(|(tokens, _)| tokens.len()).collect::<Vec<_>>(), [19]);
        // Moved in some other way, nothing is known of it.
        assert!(texts.chains.shift(|cell| if cell == 20 { -1 } else { 0 }).is_empty());
        assert!(texts.chains.texts().next().is_none());
    }

    #[test]
    fn what_was_written_unseen_is_left_alone() {
        let mut chains = Chains::new(Family::Implicit.markers());
        let place = Place { token: Some(65), position: 7, cell: 7, first_cell: 0 };
        let (rows, _, unknown) = chains.label(&[place], |_, _| true, |_| vec![65]);
        assert_eq!((rows[0].segment, unknown), (Segment::Question, 1));
    }
}
