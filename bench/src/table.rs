//! One table: ours, QEMU's as it comes and with its fastest disk engine, and how many times better ours is.

use serde_json::{Map, Value, json};

/// Whose figure it is.
pub const CANDIDATES: [&str; 3] = ["ours", "QEMU", "QEMU io_uring"];

/// Which way is better.
#[derive(Clone, Copy, PartialEq)]
pub enum Better {
    More,
    Less,
    /// Neither: it only explains the others.
    Neither,
}

#[derive(Default)]
pub struct Table {
    json: Map<String, Value>,
    topic: String,
}

impl Table {
    pub fn topic(&mut self, topic: &str) {
        println!(
            "\n{topic:42}{:>14}{:>14}{:>16}{:>10}",
            CANDIDATES[0], CANDIDATES[1], CANDIDATES[2], "ratio"
        );
        self.topic = topic.to_owned();
        self.json.insert(topic.to_owned(), json!({}));
    }

    /// Adds a line. Each ratio is that of ours to one of the others; above 1 ours is better.
    pub fn line(&mut self, name: &str, better: Better, figures: &[Option<f64>]) {
        let figure = |index: usize| figures.get(index).copied().flatten();
        let ratio = |other: usize| match (figure(0), figure(other), better) {
            (Some(ours), Some(other), Better::More) => Some(ours / other),
            (Some(ours), Some(other), Better::Less) => Some(other / ours),
            _ => None,
        };
        let text = |index| figure(index).map_or("-".to_owned(), number);
        let ratio_text = |other| ratio(other).map_or(String::new(), |ratio| format!("{ratio:.2}x"));
        println!(
            "  {name:48}{:>12}{:>12}{:>8}{:>16}{:>8}",
            text(0),
            text(1),
            ratio_text(1),
            text(2),
            ratio_text(2),
        );
        let mut entry = Map::new();
        for (index, candidate) in CANDIDATES.iter().enumerate() {
            if let Some(figure) = figure(index) {
                entry.insert((*candidate).to_owned(), json!(figure));
            }
            if let Some(ratio) = ratio(index).filter(|_| index > 0) {
                entry.insert(format!("ratio to {candidate}"), json!(ratio));
            }
        }
        if let Some(Value::Object(topic)) = self.json.get_mut(&self.topic) {
            topic.insert(name.to_owned(), Value::Object(entry));
        }
    }

    pub fn into_json(self) -> Value {
        Value::Object(self.json)
    }
}

/// Three digits that count, or all before the point.
fn number(figure: f64) -> String {
    match figure.abs() {
        100.0.. => format!("{figure:.0}"),
        10.0..100.0 => format!("{figure:.1}"),
        1.0..10.0 => format!("{figure:.2}"),
        0.0 => "0".to_owned(),
        _ => format!("{figure:.4}"),
    }
}
