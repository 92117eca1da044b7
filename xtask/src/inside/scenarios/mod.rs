//! What is run on real Xen. A scenario is a name, a sentence and a function; the order is that of the runs.

mod bad_start;
mod by_hand;
mod console;
mod first_guest;
mod hostile;
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
    /// The same for `soak`, where it takes long.
    pub long: Option<fn(&Reporter) -> Result<()>>,
}

const fn scenario(name: &'static str, run: fn(&Reporter) -> Result<()>) -> Scenario {
    Scenario { name, run, long: None }
}

pub const DEMO: Scenario = scenario("demo", first_guest::demo);

const ALL: &[Scenario] = &[
    scenario("first-guest", first_guest::test),
    scenario("bad-start", bad_start::test),
    scenario("by-hand-and-killed", by_hand::test),
    scenario("reboot", reboot::test),
    scenario("console", console::test),
    scenario("two-guests", together::test),
    scenario("four-vcpus", wide::test),
    scenario("large-guest", large::test),
    scenario("rude-guest-and-host", rude::test),
    Scenario { name: "hostile-guest", run: hostile::test, long: Some(hostile::soak) },
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
