//! What came out: one table to read, one JSON file to keep.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::plan::Plan;

/// The figures of one run, in the order of [`Report::metrics`].
pub type Sample = Vec<f64>;

#[derive(Debug)]
pub struct Report {
    title: String,
    metrics: &'static [&'static str],
    cases: Vec<Case>,
}

/// The same load, carried in several ways: pg_tide's first, then its peers'.
#[derive(Debug)]
struct Case {
    name: String,
    ways: Vec<(&'static str, Vec<Sample>)>,
}

impl Report {
    pub fn new(title: &str, metrics: &'static [&'static str]) -> Report {
        Report { title: title.to_owned(), metrics, cases: Vec::new() }
    }

    /// Measures every way once, then every way again, and so on, each round beginning with
    /// another one.
    pub fn measure<W: Copy>(
        &mut self,
        case: &str,
        plan: &Plan,
        ways: &[(&'static str, W)],
        mut run: impl FnMut(W) -> Sample,
    ) {
        let ways: Vec<_> = ways.iter().filter(|(name, _)| plan.wants_way(name)).collect();
        let mut measured: Vec<(&'static str, Vec<Sample>)> =
            ways.iter().map(|(name, _)| (*name, Vec::new())).collect();
        for pair in 0..plan.pairs {
            for turn in 0..ways.len() {
                let index = (pair + turn) % ways.len();
                let (name, way) = *ways[index];
                let sample = run(way);
                assert_eq!(sample.len(), self.metrics.len());
                eprintln!("  {case}, {name}: {}", self.describe(&sample));
                measured[index].1.push(sample);
            }
        }
        self.cases.push(Case { name: case.to_owned(), ways: measured });
    }

    fn describe(&self, sample: &Sample) -> String {
        let parts: Vec<String> = self
            .metrics
            .iter()
            .zip(sample)
            .map(|(metric, value)| format!("{metric} {}", readable(*value)))
            .collect();
        parts.join(", ")
    }

    /// Medians; in brackets the median of pg_tide's figure by this one's, pair by pair.
    pub fn print(&self) {
        println!("\n{}", self.title);
        for case in &self.cases {
            print!("  {:<30}", case.name);
            for metric in self.metrics {
                print!(" {metric:>20}");
            }
            println!();
            for (index, (way, _)) in case.ways.iter().enumerate() {
                print!("    {way:<28}");
                for metric in 0..self.metrics.len() {
                    let text = readable(case.median(index, metric));
                    match case.ratio(index, metric) {
                        Some(ratio) => print!(" {:>20}", format!("{text} ({ratio:.2})")),
                        None => print!(" {text:>20}"),
                    }
                }
                println!();
            }
        }
        println!("  (in brackets: pg_tide's figure divided by this one)");
    }

    /// Writes `target/bench/<name>.json`.
    pub fn write(&self, name: &str) {
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or("../target".into(), PathBuf::from);
        let folder = target.join("bench");
        std::fs::create_dir_all(&folder).unwrap();
        let text = serde_json::to_string_pretty(&self.to_json()).unwrap();
        std::fs::write(folder.join(format!("{name}.json")), text + "\n").unwrap();
    }

    fn to_json(&self) -> Value {
        let cases: Vec<Value> = self
            .cases
            .iter()
            .map(|case| {
                let ways: Vec<Value> =
                    (0..case.ways.len()).map(|way| self.way_to_json(case, way)).collect();
                json!({ "name": case.name, "ways": ways })
            })
            .collect();
        json!({ "title": self.title, "cases": cases })
    }

    fn way_to_json(&self, case: &Case, way: usize) -> Value {
        let (name, samples) = &case.ways[way];
        let mut figures = serde_json::Map::new();
        for (index, metric) in self.metrics.iter().enumerate() {
            let all: Vec<f64> = samples.iter().map(|sample| sample[index]).collect();
            figures.insert(
                (*metric).to_owned(),
                json!({
                    "median": case.median(way, index),
                    "pg_tide_by_this": case.ratio(way, index),
                    "samples": all,
                }),
            );
        }
        json!({ "way": name, "figures": figures })
    }
}

impl Case {
    fn median(&self, way: usize, metric: usize) -> f64 {
        median(self.ways[way].1.iter().map(|sample| sample[metric]).collect())
    }

    /// `None` for pg_tide itself, and where a peer has no such figure.
    fn ratio(&self, way: usize, metric: usize) -> Option<f64> {
        let pairs = self.ways[0].1.iter().zip(&self.ways[way].1);
        let ratios: Vec<f64> = pairs.map(|(ours, theirs)| ours[metric] / theirs[metric]).collect();
        let ratio = median(ratios);
        (way > 0 && ratio.is_finite()).then_some(ratio)
    }
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

/// The value that `share` of the sorted values do not exceed.
pub fn percentile(sorted: &[u32], share: f64) -> f64 {
    let index = (sorted.len() as f64 * share) as usize;
    sorted
        .get(index.min(sorted.len().saturating_sub(1)))
        .map_or(f64::NAN, |value| f64::from(*value))
}

/// Three significant digits, thousands apart.
fn readable(value: f64) -> String {
    if !value.is_finite() {
        return "-".into();
    }
    let decimals = match value.abs() {
        size if size >= 100.0 || size == 0.0 => 0,
        size if size >= 10.0 => 1,
        _ => 2,
    };
    let text = format!("{value:.decimals$}");
    let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
    let mut grouped = String::new();
    for (index, digit) in whole.chars().enumerate() {
        let left = whole.len() - index;
        if index > 0 && left % 3 == 0 && !grouped.ends_with('-') {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    if fraction.is_empty() { grouped } else { format!("{grouped}.{fraction}") }
}
