//! Other marks for a sequence that has its labels.

use super::{Family, Markers, Segment, TraceFile, TraceToken, Tracker};

impl TraceFile {
    /// The same tokens, labelled by other markers. What is no question now was generated; in there, or at the end of what comes
    /// before, the start marker must open thinking. Where all is question, it does so wherever it occurs last.
    ///
    /// `None` if nothing opens thinking.
    pub fn relabelled(&self, family: Family, markers: &Markers) -> Option<TraceFile> {
        let generated = self.tokens.iter().position(|token| token.segment != Segment::Question);
        let turn = match &markers.think_start {
            Some(start) => self.turn_opened_by(start.as_bytes(), generated)?,
            None => generated?,
        };
        let generated = generated.unwrap_or(turn);
        let mut tracker = Tracker::new(markers.clone());
        for (position, token) in self.tokens.iter().enumerate() {
            if position == turn {
                tracker.new_turn();
            }
            tracker.push(&token.piece, position >= generated);
        }
        let labelled = self.tokens.iter().zip(tracker.segments());
        let tokens = labelled.map(|(token, &segment)| TraceToken { segment, ..token.clone() }).collect();
        let (model, markers) = (self.model.clone(), markers.clone());
        Some(TraceFile { model, family, markers, tokens, steps: tracker.steps() })
    }

    /// The token at which the turn begins that `start` opens thinking in.
    fn turn_opened_by(&self, start: &[u8], generated: Option<usize>) -> Option<usize> {
        let text: Vec<u8> = self.tokens.iter().flat_map(|token| token.piece.iter().copied()).collect();
        let ends = self.tokens.iter().scan(0, |end, token| {
            *end += token.piece.len();
            Some(*end)
        });
        let ends: Vec<usize> = ends.collect();
        let answer = generated.map_or(text.len(), |position| ends[position] - self.tokens[position].piece.len());
        let occurs = |text: &[u8]| !start.is_empty() && text.windows(start.len()).any(|window| window == start);
        if occurs(&text[answer..]) {
            return generated;
        }
        let before = match generated {
            Some(_) => text[..answer].trim_ascii_end(),
            None => &text,
        };
        let opening = before.windows(start.len()).rposition(|window| window == start)?;
        (generated.is_none() || opening + start.len() == before.len())
            .then(|| ends.partition_point(|&end| end <= opening))
    }
}
