//! What is run on real Xen. A scenario is a name, a sentence and a function; the order is that of the runs.

mod bad_start;
mod by_hand;
mod first_guest;
mod large;
mod reboot;
mod rude;
mod together;
mod wide;

use anyhow::Result;

use crate::share::Reporter;

pub struct Scenario {
    pub name: &'static str,
    pub run: fn(&Reporter) -> Result<()>,
}

pub const DEMO: Scenario = Scenario { name: "demo", run: first_guest::demo };

const ALL: &[Scenario] = &[
    Scenario { name: "first-guest", run: first_guest::test },
    Scenario { name: "bad-start", run: bad_start::test },
    Scenario { name: "by-hand-and-killed", run: by_hand::test },
    Scenario { name: "reboot", run: reboot::test },
    Scenario { name: "two-guests", run: together::test },
    Scenario { name: "four-vcpus", run: wide::test },
    Scenario { name: "large-guest", run: large::test },
    Scenario { name: "rude-guest-and-host", run: rude::test },
];

/// The scenarios whose name contains one of the words; all if there are no words.
pub fn matching(words: &[String]) -> Vec<&'static Scenario> {
    let named = |name: &str| words.is_empty() || words.iter().any(|word| name.contains(word.as_str()));
    let wanted = |scenario: &&Scenario| named(scenario.name);
    ALL.iter().filter(wanted).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_words_pick() {
        let names: std::collections::BTreeSet<_> = ALL.iter().map(|scenario| scenario.name).collect();
        assert_eq!(names.len(), ALL.len());
        assert_eq!(matching(&["reboot".into()]).len(), 1);
        assert_eq!(matching(&[]).len(), ALL.len());
    }
}
