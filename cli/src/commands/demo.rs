//! `vaecf demo`: the main job on data that comes with the binary.

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use clap::Args;
use vaecf_core::{
    Error, Result,
    checkpoint::ModelFolder,
    config::{ModelConfig, TrainConfig},
    evaluate::Options,
    matrix::Matrix,
    metrics::Profile,
    prepare::{self, Input, PrepareOptions},
    ratings::{ReadOptions, Source},
    recommend::{Catalogue, Recommender},
    split::{Filter, HeldOut, Split},
    trainer::{Ending, Placement},
};

use super::{
    Context,
    evaluate::{self, Evaluated, Held},
    prepare::kept,
    recommend::ranking,
    train::{Job, summary},
};
use crate::output::{Done, Format, Stop, print};

/// Which package of Debian needs which; see `examples/README.md`.
const DEPENDS: &[u8] = include_bytes!("../../../examples/debian-depends.csv.zst");

/// A package that nobody has written yet.
const HISTORY: [&str; 3] = ["python3-numpy", "python3-scipy", "python3-pandas"];

/// See it work on data that comes with it.
#[derive(Args, Debug)]
#[command(
    long_about = "See it work on data that comes with it: which package of Debian needs which.

Prepares, trains, measures with the popularity ranking beside it, and says what goes with
python3-numpy python3-scipy python3-pandas. Takes a minute or two, and leaves nothing behind unless asked.",
    after_help = "Examples:
  vaecf demo
  vaecf demo -o demo/        keeps the data set and the model, to try other commands on"
)]
pub(crate) struct Demo {
    /// Keep the data set and the model in this new folder
    #[arg(short, long, value_name = "FOLDER")]
    output: Option<PathBuf>,
    /// Epochs at the most
    #[arg(long, value_name = "N")]
    epochs: Option<u32>,
}

impl Demo {
    pub(crate) fn run(&self, context: &Context) -> Done {
        if let Some(folder) = &self.output {
            let occupied = folder.read_dir().is_ok_and(|mut entries| entries.next().is_some()) || folder.is_file();
            if occupied {
                return Err(
                    Error::usage(format!("{}: it is not empty; choose another folder", folder.display())).into()
                );
            }
            std::fs::create_dir_all(folder).map_err(|e| Error::io("creating", folder, &e))?;
            return self.in_folder(folder, context);
        }
        let temporary = tempfile::tempdir().map_err(|e| Error::io("writing", &std::env::temp_dir(), &e))?;
        self.in_folder(temporary.path(), context)
    }

    fn in_folder(&self, folder: &Path, context: &Context) -> Done {
        let start = Instant::now();
        let data_folder = folder.join("data");
        print("Which package of Debian 12 needs which: packages are users, what they need are items.\n\n")?;

        let columns = ReadOptions {
            header: Some(true),
            user: Some("package".into()),
            item: Some("dependency".into()),
            ..ReadOptions::default()
        };
        let options = PrepareOptions {
            read: columns,
            filter: Filter { min_user: 5, min_item: 5, k_core: false },
            split: Split::Strong { validation: HeldOut::Users(1500), test: HeldOut::Users(1500), targets: 0.2 },
            seed: context.seed(),
            ..PrepareOptions::default()
        };
        let ratings = Source::Stream("debian-depends.csv.zst".into(), Box::new(DEPENDS));
        let (data, report) = prepare::prepare(Input::Ratings(vec![ratings]), &options)?;
        data.save(&data_folder, &serde_json::json!({ "options": options, "report": report }), false)?;
        print(format_args!("{}\n", kept(&report)))?;

        // A third of the paper's units and a few, fast epochs: nearly as good here, in a third of the time.
        let model = ModelConfig { hidden: vec![200], latent: 100, ..ModelConfig::default() };
        let train = TrainConfig {
            seed: context.seed(),
            epochs: self.epochs.unwrap_or(30),
            batch: 250,
            lr: 2e-3,
            kl_steps: 4000.0,
            ..TrainConfig::paper()
        };
        let mut context = context.clone();
        context.settings.set(&model)?;
        context.settings.set(&train)?;
        let device = context.device()?;
        let model_folder = ModelFolder::new(folder.join("model"));
        let (placement, threshold) = (Placement::Auto, None);
        let job =
            Job { data: &data, device: &device, folder: model_folder.clone(), model, train, placement, threshold };
        let (card, ending) = job.run(None, false, &context, Format::Table)?;
        if ending == Ending::Interrupted {
            return Err(Stop::Interrupted);
        }
        print(format_args!("{}\n", summary(&card, Path::new("model"))))?;

        let saved = model_folder.read()?;
        let part = data.test.as_ref().ok_or_else(|| Error::data("the demo's data set has no test part"))?;
        let metrics = &Profile::Default.metrics()[..5];
        let (evaluation, baseline) = evaluate::judge(&saved, &device, part, metrics, Options::default(), true)?;
        let evaluated = Evaluated {
            version: env!("CARGO_PKG_VERSION").into(),
            model: "model".into(),
            data: "data".into(),
            part: Held::Test,
            masked: true,
            evaluation,
            baseline,
        };
        print(format_args!("{}\n", evaluate::table(&evaluated)))?;

        print(format_args!("What goes with {}\n{}", HISTORY.join(" "), goes_with(&saved, &device)?))?;
        let seconds = start.elapsed().as_secs_f64();
        match &self.output {
            Some(folder) => context.ui.note(format_args!("{seconds:.0} s; everything is in {}", folder.display())),
            None => context.ui.note(format_args!("{seconds:.0} s; with -o demo/ the data set and the model stay")),
        }
        Ok(())
    }
}

fn goes_with(saved: &vaecf_core::checkpoint::SavedModel, device: &vaecf_core::device::Device) -> Result<String> {
    let lookup = saved.items.lookup();
    let history: Vec<u32> = HISTORY.iter().filter_map(|item| lookup.get(item).copied()).collect();
    let model = saved.on(device)?;
    let everything = Catalogue::new(saved.items.len(), None, &[]);
    let recommender = Recommender::new(&model, &saved.popularity, everything, true, 10, 1)?;
    let best = recommender.recommend(&Matrix::from_rows(saved.items.len(), [history])?)?;
    Ok(best.first().map(|best| ranking(best, &saved.items)).unwrap_or_default())
}
