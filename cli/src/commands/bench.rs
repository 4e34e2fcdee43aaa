//! `vaecf bench`: users per second beside the machine's limit and, where there is one, a peer.

use std::path::PathBuf;

use clap::Args;
use vaecf_benches::{
    run::{self, Options},
    synthetic::{self, Shape},
};
use vaecf_core::{Error, Result, config::ModelConfig, dataset::Dataset, files, matrix::Matrix};

use super::Context;
use crate::{
    backend,
    options::{Global, Precision},
    output::{Done, Format, Ui, print, print_json, vacant},
};

/// Measure training and inference: users per second, time per operation, beside the limit of this machine
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  vaecf bench                                   the MovieLens-20M shape, from a seed
  vaecf bench --peer python3                    beside PyTorch, in turns, on the same data
  vaecf bench --batch 500,4096 --precision f32,f64
  vaecf bench --data data/ --batch 4096 -o here.json")]
pub(crate) struct Bench {
    /// A prepared data set; made from the seed in the given shape unless given
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
    /// Shape of made data: ml-20m, netflix, or USERSxITEMSxEVENTS
    #[arg(long, value_name = "SHAPE", default_value = "ml-20m", value_parser = shape, conflicts_with = "data")]
    shape: Shape,
    /// Users per batch; several by commas
    #[arg(long, value_name = "N", default_value = "500", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..))]
    batch: Vec<u32>,
    /// Working precisions, by commas
    #[arg(long, value_enum, default_value = "auto", value_delimiter = ',')]
    precision: Vec<Precision>,
    /// Steps in a round, issued without waiting; 6 on the CPU, and half a second of them on a device, unless given
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    steps: Option<u16>,
    /// Rounds, in which every contestant takes its turn; figures are medians over rounds
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Items recommended to a user in inference
    #[arg(short, long = "top", value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    k: u32,
    /// Also train in a group of one, to see what sums over several devices cost beside the way between them
    #[arg(long)]
    group_of_one: bool,
    /// A Python with torch and numpy, to run the PyTorch peer beside
    #[arg(long, value_name = "PYTHON")]
    peer: Option<PathBuf>,
    /// Options of the peer, such as '--device cuda --dtype bf16 --compile'
    #[arg(long, value_name = "OPTIONS", requires = "peer", allow_hyphen_values = true, default_value = "")]
    peer_options: String,
    /// Write the figures as JSON
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Replace the file that is there
    #[arg(long)]
    force: bool,
    /// How to print them
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

fn shape(text: &str) -> std::result::Result<Shape, String> {
    let numbers: Vec<u64> = text.split('x').filter_map(|n| n.parse().ok()).collect();
    match (text, &numbers[..]) {
        ("ml-20m", _) => Ok(Shape::ML_20M),
        ("netflix", _) => Ok(Shape::NETFLIX),
        (_, &[users @ 1..=2_147_483_647, items @ 2..=2_147_483_647, events]) if events > 0 => {
            Ok(Shape { users: users as u32, items: items as u32, events })
        }
        _ => Err("ml-20m, netflix, or three numbers such as 10000x2000x500000".into()),
    }
}

impl Bench {
    pub(crate) fn run(&self, context: &Context) -> Done {
        if let Some(path) = &self.output {
            vacant(path, self.force)?;
        }
        let matrix = match &self.data {
            Some(folder) => Dataset::open(folder)?.train,
            None => {
                context.ui.note("making data");
                synthetic::matrix(self.shape, context.seed())?
            }
        };
        if self.k > matrix.items() {
            return Err(Error::usage(format!("-k {}: there are {} items", self.k, matrix.items())).into());
        }
        let figures = self.measure(&context.global, context.ui, &matrix)?;
        if let Some(path) = &self.output {
            let json = serde_json::to_string_pretty(&figures).map_err(|e| Error::failure(e.to_string()))?;
            files::write_text(path, &(json + "\n"))?;
        }
        match self.format {
            Format::Json => print_json(&figures),
            Format::Table => print(figures.to_string()),
        }
    }

    fn measure(&self, global: &Global, ui: Ui, matrix: &Matrix) -> Result<run::Figures> {
        let threads = global.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
        let options = Options {
            precisions: self.precision.iter().map(|precision| precision.name().into()).collect(),
            batches: self.batch.clone(),
            steps: self.steps.map(usize::from),
            rounds: self.rounds.into(),
            k: self.k,
            group_of_one: self.group_of_one,
            threads,
            python: self.peer.clone(),
            peer_options: self.peer_options.split_whitespace().map(str::to_owned).collect(),
        };
        let config = ModelConfig::default();
        let quiet = Ui { notes: false, details: false, ..ui };
        let open = |precision: &str| {
            let precision = *self.precision.iter().find(|known| known.name() == precision).unwrap_or(&Precision::Auto);
            backend::choose(&Global { precision, ..global.clone() }, &quiet)
        };
        run::run(open, &config, matrix, &options)
    }
}
