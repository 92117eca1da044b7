//! What came of a script, and what may differ in it.

use std::fmt::Display;

/// What a machine answered, in the order of the script.
#[derive(Default)]
pub struct Log {
    entries: Vec<(String, String)>,
    topic: String,
}

impl Log {
    /// What the next notes are about.
    pub fn topic(&mut self, topic: impl Display) {
        self.topic = topic.to_string();
    }

    pub fn note(&mut self, what: impl Display, value: impl Display) {
        self.entries.push((format!("{}: {what}", self.topic), value.to_string()));
    }

    pub fn hex(&mut self, what: impl Display, value: u64) {
        self.note(what, format_args!("{value:#x}"));
    }
}

/// A deliberate difference. It has to be there: a row that no longer holds is to go.
pub struct Difference {
    /// The note, with its topic; `*` stands for any.
    pub of: &'static str,
    pub ours: &'static str,
    pub theirs: &'static str,
    pub why: &'static str,
}

impl Difference {
    fn is_of(&self, note: &str) -> bool {
        match self.of.strip_prefix('*') {
            Some(what) => note.ends_with(what),
            None => note == self.of,
        }
    }
}

pub const fn differs(
    of: &'static str,
    ours: &'static str,
    theirs: &'static str,
    why: &'static str,
) -> Difference {
    Difference { of, ours, theirs, why }
}

/// Compares two logs of one script.
#[track_caller]
pub fn compare(ours: &Log, theirs: &Log, known: &[Difference]) {
    let mut complaints = Vec::new();
    let mut seen = vec![false; known.len()];
    for (mine, other) in ours.entries.iter().zip(&theirs.entries) {
        if mine.0 != other.0 {
            complaints.push(format!("the script went another way: {} here, {} there", mine.0, other.0));
            break;
        }
        if mine.1 == other.1 {
            continue;
        }
        let row =
            known.iter().position(|row| row.is_of(&mine.0) && (row.ours, row.theirs) == (&mine.1, &other.1));
        match row {
            Some(row) => seen[row] = true,
            None => complaints.push(format!("{}: {} here, {} in QEMU", mine.0, mine.1, other.1)),
        }
    }
    if ours.entries.len() != theirs.entries.len() {
        complaints.push(format!("{} answers here, {} in QEMU", ours.entries.len(), theirs.entries.len()));
    }
    for (row, seen) in known.iter().zip(seen) {
        if !seen {
            complaints.push(format!("{}: no longer differs as was known ({})", row.of, row.why));
        }
    }
    assert!(ours.entries.len() > 10, "the script asked next to nothing");
    assert!(complaints.is_empty(), "{} differences:\n{}", complaints.len(), complaints.join("\n"));
    println!("{} answers compared, {} of them known to differ", ours.entries.len(), known.len());
}
