//! Models and runs on disk.
//!
//! A model is a folder that stands alone:
//!
//! | file | what |
//! |---|---|
//! | `config.json` | [`Card`]: format, shape of the model, how it was trained, the validation that chose it |
//! | `items.csv` | `item,count`: external ids in the order of the output layer, with their training users |
//! | `model.safetensors` | the weights of the best validation |
//! | `training.safetensors` | the run as it stood last: weights, moments, progress; only needed to go on |
//!
//! Each file is written whole or not at all, and the tensor files carry a checksum of their contents.
//! The run's state holds everything it needs to go on, its best weights too, so it is consistent in
//! itself; a crash between the two files leaves the previous best model beside it.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
};

use safetensors::{Dtype, SafeTensors, View};
use serde::{Deserialize, Serialize};

use crate::{
    config::{ModelConfig, TrainConfig},
    dataset::{Dataset, Vocabulary},
    device::Device,
    error::{Error, Kind, Result},
    files,
    model::Model,
    popularity::Popularity,
    split::Threshold,
    tensors::{Tensor, Tensors, Values},
    trainer::{Best, Ending, Progress, Snapshot},
};

/// Version of the folder's form; a newer one is refused with a sentence.
pub const FORMAT: u32 = 1;

const CONFIG: &str = "config.json";
const ITEMS: &str = "items.csv";
const WEIGHTS: &str = "model.safetensors";
const TRAINING: &str = "training.safetensors";
/// The key of a tensor file's metadata, which is a JSON object in text.
const METADATA: &str = "vaecf";

/// What a model is and where it comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Card {
    /// Version of the folder's form.
    pub format: u32,
    /// Version of vaecf that wrote it.
    pub version: String,
    /// Shape of the model.
    pub model: ModelConfig,
    /// How it was trained.
    pub train: TrainConfig,
    /// Items it ranks.
    pub items: u32,
    /// Users it was trained on.
    pub users: u32,
    /// Whether their events had weights: so should the histories it ranks for.
    #[serde(default)]
    pub weighted: bool,
    /// Which values counted when its data were prepared, where that is known: likewise.
    #[serde(default)]
    pub threshold: Option<Threshold>,
    /// Checksum (CRC-32) of `items.csv`.
    pub items_crc32: u32,
    /// Checksum (CRC-32) of the training histories; going on with others is refused.
    pub data_crc32: u32,
    /// The validation that chose the weights.
    pub best: Option<Best>,
    /// The definition of its metric.
    pub metric_definition: String,
    /// How the run ended; none while it runs.
    pub ending: Option<Ending>,
}

/// A model's folder.
#[derive(Clone, Debug)]
pub struct ModelFolder {
    dir: PathBuf,
}

/// A model read from its folder: shape, weights and vocabulary, not yet on any device.
#[derive(Clone, Debug)]
pub struct SavedModel {
    /// What it is.
    pub card: Card,
    /// Its weights.
    pub weights: Tensors,
    /// External ids of its items.
    pub items: Vocabulary,
    /// How many training users had each item.
    pub popularity: Popularity,
}

impl SavedModel {
    /// Puts the model on a device.
    ///
    /// # Errors
    /// Where the weights do not fit the shape, are not finite, or the device has no room.
    pub fn on(&self, device: &Device) -> Result<Model> {
        Model::load(device, &self.card.model, self.card.items, &self.weights).map_err(|e| e.context(WEIGHTS))
    }
}

impl ModelFolder {
    /// A model's folder, which may not exist yet.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// The path of the folder.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Whether there is a run that can go on.
    pub fn has_run(&self) -> bool {
        self.dir.join(TRAINING).exists()
    }

    /// Refuses a folder that holds something already, unless that is a model and may be replaced.
    ///
    /// # Errors
    /// Says what could be done instead.
    pub fn vacant(&self, force: bool) -> Result<()> {
        let shown = self.dir.display();
        let names = std::fs::read_dir(&self.dir).into_iter().flatten().flatten().map(|entry| entry.file_name());
        let names: Vec<_> = names.map(|name| name.to_string_lossy().into_owned()).collect();
        // A run that was killed while it began has no card yet, but maybe what stood beside an older one.
        let written = [WEIGHTS, TRAINING, CONFIG, ITEMS, "training.jsonl", "run.toml"];
        let known = |name: &String| written.contains(&&**name) || name.starts_with(files::DRAFT);
        let card = self.card().is_ok();
        let ours = names.iter().all(known) || card;
        // A run that failed before its first checkpoint has left nothing that could be lost.
        let learned = names.iter().any(|name| [WEIGHTS, TRAINING].contains(&&**name));
        match (names.is_empty() || card && !learned, ours, force) {
            (true, ..) | (_, true, true) => Ok(()),
            (_, true, false) => Err(Error::usage(format!(
                "{shown}: there is a model in this folder; choose another, add --force to replace it, or --resume to go on"
            ))),
            (_, false, _) => {
                Err(Error::usage(format!("{shown}: the folder holds something that is not a model; choose another")))
            }
        }
    }

    /// Begins a run: makes the folder and writes what does not change.
    ///
    /// # Errors
    /// Where the folder holds something already and `force` is not given, or the file system refuses.
    pub fn begin(&self, model: &ModelConfig, train: &TrainConfig, data: &Dataset, force: bool) -> Result<Card> {
        self.vacant(force)?;
        files::sweep(&self.dir);
        std::fs::create_dir_all(&self.dir).map_err(|e| Error::io("creating", &self.dir, &e))?;
        for old in [WEIGHTS, TRAINING, CONFIG, ITEMS] {
            match std::fs::remove_file(self.dir.join(old)) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::io("replacing", &self.dir.join(old), &e));
                }
                _ => {}
            }
        }
        let metric: crate::metrics::Metric = train.metric.parse()?;
        let items = items_csv(&data.items, &data.train.popularity())?;
        let card = Card {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            model: model.clone(),
            train: train.clone(),
            items: data.train.items(),
            users: data.train.users(),
            weighted: data.train.values().is_some(),
            threshold: None,
            items_crc32: crc32fast::hash(&items),
            data_crc32: fingerprint(data),
            best: None,
            metric_definition: metric.definition(),
            ending: None,
        };
        let path = self.dir.join(ITEMS);
        files::write_atomic(&path, |w| w.write_all(&items).map_err(|e| Error::io("writing", &path, &e)))?;
        self.write_card(&card)?;
        Ok(card)
    }

    /// Writes the card again, when something of it is known better.
    ///
    /// # Errors
    /// What the file system reports.
    pub fn write_card(&self, card: &Card) -> Result<()> {
        let text = serde_json::to_string_pretty(card).map_err(|e| Error::failure(format!("{CONFIG}: {e}")))?;
        files::write_text(&self.dir.join(CONFIG), &(text + "\n"))
    }

    /// Reads the card.
    ///
    /// # Errors
    /// Where there is no model, it is damaged, or of a newer version.
    pub fn card(&self) -> Result<Card> {
        let path = self.dir.join(CONFIG);
        let text = std::fs::read_to_string(&path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => Error::data(format!(
                "{}: there is no model in this folder ({CONFIG} is missing); `vaecf train` makes one",
                self.dir.display()
            )),
            _ => Error::io("reading", &path, &e),
        })?;
        let damaged = |e: serde_json::Error| Error::data(format!("{}: not a model's description: {e}", path.display()));
        let value: serde_json::Value = serde_json::from_str(&text).map_err(damaged)?;
        match value.get("format").and_then(serde_json::Value::as_u64) {
            Some(format) if format == u64::from(FORMAT) => {}
            Some(format) => {
                return Err(Error::data(format!(
                    "{}: the model has format {format}, this program reads {FORMAT}; use the version that wrote it",
                    path.display()
                )));
            }
            None => {
                return Err(Error::data(format!("{}: not a model's description: it names no format", path.display())));
            }
        }
        serde_json::from_value(value).map_err(damaged)
    }

    /// Writes the weights of a model.
    ///
    /// # Errors
    /// What the file system reports; what was there before stays.
    pub fn write_weights(&self, weights: &Tensors) -> Result<()> {
        write_tensors(&self.dir.join(WEIGHTS), &[("", weights)], BTreeMap::new())
    }

    /// Writes a run as it stands, then the best weights as the model.
    ///
    /// # Errors
    /// What the file system reports; what was there before stays.
    pub fn write_run(&self, snapshot: &Snapshot) -> Result<()> {
        let progress =
            serde_json::to_string(&snapshot.progress).map_err(|e| Error::failure(format!("{TRAINING}: {e}")))?;
        let mut groups =
            vec![("weights/", &snapshot.weights), ("m/", &snapshot.moments[0]), ("v/", &snapshot.moments[1])];
        groups.extend(snapshot.best.as_deref().map(|best| ("best/", best)));
        write_tensors(&self.dir.join(TRAINING), &groups, BTreeMap::from([("progress".into(), progress)]))?;
        self.write_weights(snapshot.best.as_deref().unwrap_or(&snapshot.weights))
    }

    /// Reads a run, to go on with it. One that ended before its first checkpoint has no snapshot, and
    /// goes on from its beginning.
    ///
    /// # Errors
    /// Where there is none, it is damaged, or it was made from other data.
    pub fn read_run(&self, data: &Dataset) -> Result<(Card, Option<Snapshot>)> {
        let card = self.card()?;
        if card.data_crc32 != fingerprint(data) {
            return Err(Error::data(format!(
                "{}: the run was made from other training data; resume with the data set it began with",
                self.dir.display()
            )));
        }
        files::sweep(&self.dir);
        if !self.has_run() {
            return Ok((card, None));
        }
        let path = self.dir.join(TRAINING);
        let here = |what: String| Error::data(format!("{}: {what}", path.display()));
        let (mut groups, metadata) = read_tensors(&path)?;
        let progress = metadata.get("progress").ok_or_else(|| here("there is no progress in it".into()))?;
        let progress: Progress =
            serde_json::from_str(progress).map_err(|e| here(format!("its progress is damaged: {e}")))?;
        let mut group = |name: &str| groups.remove(name).ok_or_else(|| here(format!("there are no tensors {name}*")));
        let (weights, moments) = (group("weights/")?, [group("m/")?, group("v/")?]);
        let best = match progress.best {
            Some(_) => Some(Arc::new(group("best/")?)),
            None => None,
        };
        Ok((card, Some(Snapshot { progress, weights, moments, best })))
    }

    /// Reads the model.
    ///
    /// # Errors
    /// Where there is none, or a file is missing, damaged, or belongs to another model.
    pub fn read(&self) -> Result<SavedModel> {
        let card = self.card()?;
        let path = self.dir.join(ITEMS);
        let bytes = std::fs::read(&path).map_err(|e| Error::io("reading", &path, &e))?;
        let here = |what: String| Error::data(format!("{}: {what}", path.display()));
        if crc32fast::hash(&bytes) != card.items_crc32 {
            return Err(here("the checksum does not match: the file was changed or damaged".into()));
        }
        let (items, counts) = read_items(&bytes).map_err(|e| e.context(path.display()))?;
        if items.len() != card.items {
            return Err(here(format!("{} items, the model has {}", items.len(), card.items)));
        }
        let popularity = Popularity::new(counts, card.users).map_err(|e| e.context(path.display()))?;
        Ok(SavedModel { weights: self.read_weights()?, card, items, popularity })
    }

    fn read_weights(&self) -> Result<Tensors> {
        let path = self.dir.join(WEIGHTS);
        if !path.exists() {
            return Err(Error::data(format!(
                "{}: the run in this folder ended before its first checkpoint; go on with `vaecf train --resume`",
                self.dir.display()
            )));
        }
        let (mut groups, _) = read_tensors(&path)?;
        groups.remove("").ok_or_else(|| Error::data(format!("{}: there are no weights in it", path.display())))
    }
}

/// Checksum of what a run is trained on.
fn fingerprint(data: &Dataset) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&data.train.items().to_le_bytes());
    crc.update(bytemuck::cast_slice(data.train.indptr()));
    crc.update(bytemuck::cast_slice(data.train.indices()));
    crc.update(bytemuck::cast_slice(data.train.values().unwrap_or_default()));
    crc.finalize()
}

fn items_csv(items: &Vocabulary, counts: &[u32]) -> Result<Vec<u8>> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    let failed = |e: csv::Error| Error::failure(format!("{ITEMS}: {e}"));
    writer.write_record(["item", "count"]).map_err(failed)?;
    for (item, count) in items.iter().zip(counts) {
        writer.write_record([item, &count.to_string()]).map_err(failed)?;
    }
    writer.into_inner().map_err(|e| Error::failure(format!("{ITEMS}: {e}")))
}

fn read_items(bytes: &[u8]) -> Result<(Vocabulary, Vec<u32>)> {
    let mut reader = csv::Reader::from_reader(bytes);
    let (mut items, mut counts) = (Vocabulary::default(), Vec::new());
    for record in reader.records() {
        let record = record.map_err(|e| Error::data(e.to_string()))?;
        let count = record.get(1).and_then(|c| c.parse().ok());
        let (Some(item), Some(count)) = (record.get(0), count) else {
            return Err(Error::data(format!("line {}: not an item and a count", items.len() + 2)));
        };
        items.push(item);
        counts.push(count);
    }
    Ok((items, counts))
}

/// A tensor as its file has it.
struct Shaped<'a> {
    tensor: &'a Tensor,
    shape: [usize; 2],
}

impl View for Shaped<'_> {
    fn dtype(&self) -> Dtype {
        match self.tensor.values {
            Values::F32(_) => Dtype::F32,
            Values::F64(_) => Dtype::F64,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(bytes_of(self.tensor))
    }

    fn data_len(&self) -> usize {
        bytes_of(self.tensor).len()
    }
}

#[cfg(target_endian = "big")]
compile_error!("tensor files are little-endian and are written as they lie in memory");

fn bytes_of(tensor: &Tensor) -> &[u8] {
    match &tensor.values {
        Values::F32(v) => bytemuck::cast_slice(v),
        Values::F64(v) => bytemuck::cast_slice(v),
    }
}

/// The checksum of a tensor file: over every tensor's name and bytes, by name, and the metadata.
fn checksum<'a>(tensors: impl Iterator<Item = (&'a str, &'a [u8])>, metadata: &BTreeMap<String, String>) -> String {
    let mut crc = crc32fast::Hasher::new();
    for (name, bytes) in tensors {
        crc.update(name.as_bytes());
        crc.update(bytes);
    }
    for (key, value) in metadata {
        crc.update(key.as_bytes());
        crc.update(value.as_bytes());
    }
    format!("{:08x}", crc.finalize())
}

/// Writes groups of tensors, each name with its group's prefix, to a safetensors file.
fn write_tensors(path: &Path, groups: &[(&str, &Tensors)], mut metadata: BTreeMap<String, String>) -> Result<()> {
    let mut named = BTreeMap::new();
    for (prefix, tensors) in groups {
        for (name, tensor) in &tensors.0 {
            named.insert(
                format!("{prefix}{name}"),
                Shaped { tensor, shape: [tensor.rows as usize, tensor.cols as usize] },
            );
        }
    }
    metadata.insert("format".into(), FORMAT.to_string());
    let crc = checksum(named.iter().map(|(n, t)| (n.as_str(), bytes_of(t.tensor))), &metadata);
    metadata.insert("crc32".into(), crc);

    // The crate writes to a file it names itself; from there it is flushed and renamed into place.
    let folder = files::folder_of(path);
    let failed = |e: &std::io::Error| Error::io("writing", path, e);
    let temporary = tempfile::Builder::new().prefix(files::DRAFT).tempdir_in(&folder).map_err(|e| failed(&e))?;
    let draft = temporary.path().join("tensors");
    // One entry, because the crate writes several in an order that differs from run to run.
    let metadata = serde_json::to_string(&metadata).map_err(|e| Error::failure(format!("{}: {e}", path.display())))?;
    let metadata = HashMap::from([(METADATA.to_owned(), metadata)]);
    safetensors::serialize_to_file(named, Some(metadata), &draft).map_err(|e| match e {
        safetensors::SafeTensorError::IoError(e) => failed(&e),
        e => Error::failure(format!("{}: {e}", path.display())),
    })?;
    // The crate's file is private; a result is as readable as any new file.
    let plain = std::fs::File::create(temporary.path().join("plain")).and_then(|f| f.metadata());
    let mode = plain.map_err(|e| failed(&e))?.permissions();
    std::fs::set_permissions(&draft, mode).map_err(|e| failed(&e))?;
    std::fs::File::open(&draft).and_then(|f| f.sync_all()).map_err(|e| failed(&e))?;
    std::fs::rename(&draft, path).map_err(|e| failed(&e))?;
    files::sync_folder(&folder);
    Ok(())
}

/// Groups of tensors by the prefix of their names (up to the slash), and the file's metadata.
type Groups = (BTreeMap<String, Tensors>, HashMap<String, String>);

/// Reads a tensor file and checks it.
fn read_tensors(path: &Path) -> Result<Groups> {
    let bytes = std::fs::read(path).map_err(|e| Error::io("reading", path, &e))?;
    parse_tensors(&bytes).map_err(|e| e.context(path.display()))
}

fn parse_tensors(bytes: &[u8]) -> Result<Groups> {
    let damaged = |e: &dyn std::fmt::Display| Error::new(Kind::Data, format!("not a readable tensor file: {e}"));
    let file = SafeTensors::deserialize(bytes).map_err(|e| damaged(&e))?;
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| damaged(&e))?;
    let metadata = header.metadata().as_ref().and_then(|all| all.get(METADATA));
    let metadata = metadata.ok_or_else(|| damaged(&"it was not written by vaecf"))?;
    let mut metadata: BTreeMap<String, String> = serde_json::from_str(metadata).map_err(|e| damaged(&e))?;
    let said = metadata.remove("crc32").ok_or_else(|| damaged(&"it has no checksum"))?;
    let views: BTreeMap<String, _> = file.iter().map(|(n, v)| (n.to_owned(), v)).collect();
    let found = checksum(views.iter().map(|(n, v)| (n.as_str(), v.data())), &metadata);
    if said != found {
        return Err(Error::data(format!(
            "the checksum does not match ({found}, the file says {said}): it was changed or damaged; use another checkpoint"
        )));
    }
    let mut groups: BTreeMap<String, Tensors> = BTreeMap::new();
    for (name, view) in &views {
        let size = |at: usize| view.shape().get(at).and_then(|&n| u32::try_from(n).ok());
        let (Some(rows), Some(cols)) = (size(0), size(1)) else {
            return Err(damaged(&format_args!("{name} is not a matrix")));
        };
        let values = match view.dtype() {
            Dtype::F32 => Values::F32(bytemuck::pod_collect_to_vec(view.data())),
            Dtype::F64 => Values::F64(bytemuck::pod_collect_to_vec(view.data())),
            other => return Err(damaged(&format_args!("{name} holds {other:?}, not floats"))),
        };
        let split = name.find('/').map_or(0, |at| at + 1);
        let group = groups.entry(name[..split].to_owned()).or_default();
        group.0.insert(name[split..].to_owned(), Tensor { rows, cols, values });
    }
    Ok((groups, metadata.into_iter().collect()))
}
