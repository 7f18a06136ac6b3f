//! How a model marks the parts of its output.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::Markers;

/// A group of models that mark thinking and summary in the same way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// `<think>` ... `</think>`: DeepSeek-R1 and its distillations, QwQ-32B, Qwen3.
    ThinkTags,
    /// `<|channel|>analysis<|message|>` ... `<|channel|>final<|message|>`: GPT-OSS.
    Harmony,
    /// Unmarked: thinking starts with the first generated token and ends at `**Final Answer**` or at an answer.
    Implicit,
    /// Markers given by the user.
    Custom,
}

impl Family {
    const ALL: [Family; 4] = [Family::ThinkTags, Family::Harmony, Family::Implicit, Family::Custom];

    /// Tells the family from the vocabulary (`has_token`: is there a token with exactly this text) and the chat
    /// template. The vocabulary goes first, for a template may mention tags only to strip them. `None` if nothing fits.
    pub fn detect(has_token: impl Fn(&str) -> bool, chat_template: Option<&str>) -> Option<Family> {
        let has_all = |family: Family| family.tokens().iter().all(|&token| has_token(token));
        [Family::ThinkTags, Family::Harmony]
            .into_iter()
            .find(|&family| has_all(family))
            .or_else(|| Family::ThinkTags.fits(has_token, chat_template).then_some(Family::ThinkTags))
    }

    /// Whether a model can be of the family: its vocabulary has the family's tokens, or its chat template writes tags.
    pub fn fits(self, has_token: impl Fn(&str) -> bool, chat_template: Option<&str>) -> bool {
        let mentions_tags = |template: &str| template.contains("<think>") || template.contains("</think>");
        self.tokens().iter().all(|&token| has_token(token))
            || self == Family::ThinkTags && chat_template.is_some_and(mentions_tags)
    }

    /// The tokens that its markers are made of, where a vocabulary made for it has them.
    pub fn tokens(self) -> &'static [&'static str] {
        match self {
            Family::ThinkTags => &["<think>", "</think>"],
            Family::Harmony => &["<|channel|>", "<|message|>"],
            Family::Implicit | Family::Custom => &[],
        }
    }

    /// The family's markers. `Custom` has none of its own and gives those of `ThinkTags`, for its user to replace.
    pub fn markers(self) -> Markers {
        let (start, end) = match self {
            Family::ThinkTags | Family::Custom => (Some("<think>"), "</think>"),
            Family::Harmony => (Some("<|channel|>analysis<|message|>"), "<|channel|>final<|message|>"),
            Family::Implicit => (None, "**Final Answer**"),
        };
        Markers { think_start: start.map(str::to_owned), think_end: end.to_owned(), answers: self == Family::Implicit }
    }

    fn name(self) -> &'static str {
        match self {
            Family::ThinkTags => "think-tags",
            Family::Harmony => "harmony",
            Family::Implicit => "implicit",
            Family::Custom => "custom",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The error of parsing a [`Family`]: a name that is none of them.
#[derive(Debug, thiserror::Error)]
#[error("unknown family {0:?}: use one of think-tags, harmony, implicit, custom")]
pub struct UnknownFamily(String);

impl FromStr for Family {
    type Err = UnknownFamily;

    fn from_str(name: &str) -> Result<Family, UnknownFamily> {
        Family::ALL.into_iter().find(|family| family.name() == name).ok_or_else(|| UnknownFamily(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_the_error_lists_them() {
        for family in Family::ALL {
            assert_eq!(family.to_string().parse::<Family>().unwrap(), family);
            assert_eq!(serde_json::to_string(&family).unwrap(), format!("\"{family}\""));
        }
        let error = "llama".parse::<Family>().unwrap_err().to_string();
        assert!(Family::ALL.iter().all(|family| error.contains(family.name())), "{error}");
    }

    #[test]
    fn detects_by_vocabulary_then_template() {
        let vocabulary = |tokens: &'static [&'static str]| move |text: &str| tokens.contains(&text);
        assert_eq!(Family::detect(vocabulary(&["<think>", "</think>"]), None), Some(Family::ThinkTags));
        assert_eq!(Family::detect(vocabulary(&["<think>"]), None), None);
        assert_eq!(Family::detect(vocabulary(&["<|channel|>", "<|message|>"]), None), Some(Family::Harmony));
        assert_eq!(Family::detect(vocabulary(&[]), Some("{{ '<think>\\n' }}")), Some(Family::ThinkTags));
        assert_eq!(Family::detect(vocabulary(&[]), Some("{{ messages }}")), None);
        assert_eq!(
            Family::detect(vocabulary(&["<|channel|>", "<|message|>"]), Some("strip </think>")),
            Some(Family::Harmony)
        );
    }
}
