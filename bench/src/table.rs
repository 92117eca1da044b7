//! One table: ours, QEMU's, and how many times better ours is.

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

    /// Adds a line. The ratio is that of ours to the best of the others; above 1 ours is better.
    pub fn line(&mut self, name: &str, better: Better, figures: &[Option<f64>]) {
        let ours = figures.first().copied().flatten();
        let others = figures.iter().skip(1).flatten().copied();
        let best = if better == Better::More { others.reduce(f64::max) } else { others.reduce(f64::min) };
        let ratio = match (ours, best, better) {
            (Some(ours), Some(best), Better::More) => Some(ours / best),
            (Some(ours), Some(best), Better::Less) => Some(best / ours),
            _ => None,
        };
        let text = |figure: Option<&Option<f64>>| figure.copied().flatten().map_or("-".to_owned(), number);
        let ratio_text = ratio.map_or(String::new(), |ratio| format!("{ratio:.2}x"));
        println!(
            "  {name:40}{:>14}{:>14}{:>16}{ratio_text:>10}",
            text(figures.first()),
            text(figures.get(1)),
            text(figures.get(2)),
        );
        let mut entry: Map<String, Value> = CANDIDATES
            .iter()
            .zip(figures)
            .filter_map(|(candidate, figure)| figure.map(|figure| ((*candidate).to_owned(), json!(figure))))
            .collect();
        if let Some(ratio) = ratio {
            entry.insert("ratio".to_owned(), json!(ratio));
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
