//! Data of a known shape, from a seed: for speed, where the real data is not at hand.
//!
//! The popularity and activity curves are those of the MovieLens-20M training data after the
//! published filter; tastes are a few topics a user, so that there is something to learn.

use vaecf_core::{
    Result,
    matrix::Matrix,
    random::{Generator, stream},
};

/// The size of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Users, the rows.
    pub users: u32,
    /// Items, the columns.
    pub items: u32,
    /// Events wanted; the matrix has within a percent of it.
    pub events: u64,
}

impl Shape {
    /// The training part of MovieLens-20M: 73 events a user.
    pub const ML_20M: Self = Self { users: 116_677, items: 20_108, events: 8_538_000 };
    /// Netflix after the published filter.
    pub const NETFLIX: Self = Self { users: 463_435, items: 17_769, events: 56_880_037 };

    /// The same catalogue and activity with another number of users.
    #[must_use]
    pub fn with_users(self, users: u32) -> Self {
        let events = u128::from(self.events) * u128::from(users) / u128::from(self.users.max(1));
        Self { users, events: events as u64, ..self }
    }
}

/// Share of events of the most popular items, by fraction of the catalogue.
const SHARES: [(f64, f64); 11] = [
    (1.0 / 20_108.0, 0.0054),
    (10.0 / 20_108.0, 0.0438),
    (50.0 / 20_108.0, 0.1498),
    (100.0 / 20_108.0, 0.233),
    (200.0 / 20_108.0, 0.3514),
    (500.0 / 20_108.0, 0.5498),
    (1000.0 / 20_108.0, 0.7176),
    (2000.0 / 20_108.0, 0.8604),
    (5000.0 / 20_108.0, 0.9693),
    (10_000.0 / 20_108.0, 0.9945),
    (1.0, 1.0),
];

/// Events of a user, relative to the mean of 73.1, at quantiles of the users.
const ACTIVITY: [(f64, f64); 11] = [
    (0.0, 5.0),
    (0.05, 10.0),
    (0.1, 12.0),
    (0.25, 18.0),
    (0.5, 37.0),
    (0.75, 87.0),
    (0.9, 172.0),
    (0.95, 247.0),
    (0.99, 472.0),
    (0.999, 982.0),
    (1.0, 2500.0),
];

const TOPICS: usize = 64;
/// Smaller makes users keener on few topics.
const MIXTURE: f64 = 0.012;
/// Larger makes topics differ more.
const TILT: f64 = 3.0;

/// A matrix of a shape: events of a user are drawn without repeats from the topics the user likes.
///
/// # Errors
/// Where the shape has no items.
pub fn matrix(shape: Shape, seed: u64) -> Result<Matrix> {
    let items = shape.items as usize;
    let popularity = popularity(items);
    let mut random = Generator::new(seed, stream::SYNTHETIC, 0);
    let tables: Vec<Vec<f64>> = (0..TOPICS)
        .map(|_| {
            let mut sum = 0.0;
            let weight = |p: &f64| {
                sum += p * (TILT * random.normal()).exp();
                sum
            };
            let mut table: Vec<f64> = popularity.iter().map(weight).collect();
            table.iter_mut().for_each(|x| *x /= sum);
            table
        })
        .collect();
    let mean = shape.events as f64 / f64::from(shape.users);
    let rows = (0..shape.users).map(|user| {
        let mut random = Generator::new(seed, stream::SYNTHETIC, user + 1);
        let wanted = interpolate(&ACTIVITY, random.unit()) * mean / MEAN_ACTIVITY;
        let wanted = (wanted.round() as usize).clamp(1, items.div_ceil(2));
        let mixture = mixture(&mut random);
        let mut row: Vec<u32> = Vec::with_capacity(wanted);
        let mut seen = std::collections::HashSet::with_capacity(wanted);
        // A user who has had nearly all of a topic stops a little short rather than searching on.
        for _ in 0..8 * wanted {
            let topic = mixture.partition_point(|&x| x < random.unit()).min(TOPICS - 1);
            let item = tables[topic].partition_point(|&x| x < random.unit()).min(items - 1) as u32;
            if seen.insert(item) {
                row.push(item);
            }
            if row.len() == wanted {
                break;
            }
        }
        row
    });
    Matrix::from_rows(shape.items, rows)
}

/// The mean of [`ACTIVITY`] as it is drawn here.
const MEAN_ACTIVITY: f64 = 73.0;

/// Probabilities of items, the most popular first, with the shares of [`SHARES`].
fn popularity(items: usize) -> Vec<f64> {
    let share = |rank: usize| {
        let at = rank as f64 / items as f64;
        if at <= SHARES[0].0 { at / SHARES[0].0 * SHARES[0].1 } else { interpolate_log(&SHARES, at) }
    };
    (0..items).map(|rank| (share(rank + 1) - share(rank)).max(1e-12)).collect()
}

/// Piecewise, linear in log y.
fn interpolate(points: &[(f64, f64)], x: f64) -> f64 {
    let at = points.partition_point(|p| p.0 < x).clamp(1, points.len() - 1);
    let ((x0, y0), (x1, y1)) = (points[at - 1], points[at]);
    (y0.ln() + (y1.ln() - y0.ln()) * (x - x0) / (x1 - x0)).exp()
}

/// Piecewise, linear in log x.
fn interpolate_log(points: &[(f64, f64)], x: f64) -> f64 {
    let at = points.partition_point(|p| p.0 < x).clamp(1, points.len() - 1);
    let ((x0, y0), (x1, y1)) = (points[at - 1], points[at]);
    y0 + (y1 - y0) * (x.ln() - x0.ln()) / (x1.ln() - x0.ln())
}

/// A draw from a symmetric Dirichlet distribution, cumulated. Gamma(a) is Gamma(a + 1) U^(1/a),
/// in logarithms because U^(1/a) underflows; Gamma(a + 1) by Marsaglia and Tsang (2000).
fn mixture(random: &mut Generator) -> Vec<f64> {
    let d = MIXTURE + 1.0 - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    let logs: Vec<f64> = (0..TOPICS)
        .map(|_| {
            loop {
                let x = random.normal();
                let v = (1.0 + c * x).powi(3);
                let u = 1.0 - random.unit();
                if v > 0.0 && u.ln() < 0.5 * x * x + d - d * v + d * v.ln() {
                    break (d * v).ln() + (1.0 - random.unit()).ln() / MIXTURE;
                }
            }
        })
        .collect();
    let top = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut sum = 0.0;
    let mut cumulated: Vec<f64> = logs
        .iter()
        .map(|x| {
            sum += (x - top).exp();
            sum
        })
        .collect();
    cumulated.iter_mut().for_each(|x| *x /= sum);
    cumulated
}
