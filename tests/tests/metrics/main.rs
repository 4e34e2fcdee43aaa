//! Metrics against their formulas, written a second time and without haste, and against examples
//! worked by hand; and the reports that are made of them.

mod examples;
mod formulas;
mod properties;
mod reports;
mod world;
