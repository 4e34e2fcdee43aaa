//! The prepared data set on disk: a folder that opens in milliseconds and that a person can look at.
//!
//! | file | holds |
//! |---|---|
//! | `dataset.json` | format version, counts, how it was made, size and CRC-32 of every other file |
//! | `train.safetensors` | `indptr` (u64), `indices` (u32), with weights also `values` (f32) |
//! | `validation.safetensors`, `test.safetensors` | `users` (u32), and the same arrays for `history_` and `target_` |
//! | `items.csv` | `item,count`: external ids in the order of the columns, and their training events |
//! | `users.csv` | `user`: external ids in the order of the rows |
//!
//! The arrays are memory-mapped, little-endian. The folder appears whole or not at all.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read},
    marker::PhantomData,
    ops::{Deref, Range},
    path::Path,
    sync::Arc,
};

use bytemuck::Pod;
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors, View};
use serde::{Deserialize, Serialize};

use crate::{
    dataset::{Dataset, Part, Vocabulary},
    error::{Error, Result},
    matrix::{Array, Matrix},
};

#[cfg(target_endian = "big")]
compile_error!("prepared data sets are mapped into memory as they lie on disk, which is little-endian");

/// What [`Manifest::format`] says.
const FORMAT: &str = "vaecf data set";
/// The version that is written, and the newest that is read.
const VERSION: u32 = 1;
const MANIFEST: &str = "dataset.json";

/// `dataset.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// What this is.
    pub format: String,
    /// The version of the form; a newer one is refused.
    pub version: u32,
    /// External user ids, of all parts.
    pub users: u32,
    /// External item ids.
    pub items: u32,
    /// Users of the training part.
    pub train_users: u32,
    /// Events of the training part.
    pub train_events: u64,
    /// The validation part, where there is one.
    pub validation: Option<HeldOutSize>,
    /// The test part, where there is one.
    pub test: Option<HeldOutSize>,
    /// How it was made: options, and what was kept and dropped.
    pub made: serde_json::Value,
    /// Every other file.
    pub files: BTreeMap<String, FileSum>,
}

/// The size of a held-out part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeldOutSize {
    /// Its users.
    pub users: u32,
    /// Its target events.
    pub targets: u64,
}

/// The size and checksum of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileSum {
    /// Its length in bytes.
    pub bytes: u64,
    /// Its CRC-32 (the one of gzip and zip).
    pub crc32: u32,
}

impl Manifest {
    /// Reads the manifest of a prepared data set.
    ///
    /// # Errors
    /// Where the folder is not one, or was written by a newer version.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(MANIFEST);
        if !dir.exists() {
            return Err(Error::data(format!("{}: there is no such file or folder", dir.display())));
        }
        if !path.exists() {
            return Err(Error::data(format!(
                "{0}: this is not a prepared data set; make one with `vaecf prepare {0} -o data/`",
                dir.display()
            )));
        }
        let text = fs::read(&path).map_err(|e| Error::io("reading", &path, &e))?;
        let wrong = |what: String| Error::data(format!("{}: {what}; prepare the data set again", path.display()));
        // The version first: a newer one may have other fields.
        let value: serde_json::Value = serde_json::from_slice(&text).map_err(|e| wrong(format!("damaged ({e})")))?;
        if value["format"] != FORMAT {
            return Err(wrong("this is not the description of a data set".to_owned()));
        }
        if value["version"].as_u64().is_none_or(|version| version > u64::from(VERSION)) {
            return Err(wrong(format!("version {} is newer than {VERSION}, the newest known here", value["version"])));
        }
        serde_json::from_value(value).map_err(|e| wrong(format!("damaged ({e})")))
    }
}

impl Dataset {
    /// Writes the data set into a new folder; `made` says how it was made. An existing data set is
    /// replaced only with `force`, and anything else that exists is left alone.
    ///
    /// # Errors
    /// Where the folder exists, or the file system refuses; then nothing is left behind.
    pub fn save(&self, dir: &Path, made: &serde_json::Value, force: bool) -> Result<()> {
        let shown = dir.display();
        let Some(name) = dir.file_name() else {
            return Err(Error::usage(format!("{shown}: a data set needs a folder with a name of its own")));
        };
        let parent = dir.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let exists = fs::symlink_metadata(dir).is_ok();
        if exists {
            let empty = fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none());
            let ours = dir.join(MANIFEST).is_file();
            if !(empty || (ours && force)) {
                let what =
                    if ours { "choose another name, or overwrite it with --force" } else { "choose another name" };
                return Err(Error::usage(format!("{shown}: this exists already; {what}")));
            }
        }
        let failed = |e: io::Error| Error::io("writing", dir, &e);
        fs::create_dir_all(parent).map_err(failed)?;
        // The folder is removed again when this goes out of scope, whatever happens.
        let temporary = sibling(parent, name).map_err(failed)?;
        self.write(temporary.path(), made)?;
        let old = if exists {
            let old = sibling(parent, name).map_err(failed)?;
            fs::rename(dir, old.path()).map_err(failed)?;
            Some(old)
        } else {
            None
        };
        if let Err(error) = fs::rename(temporary.path(), dir) {
            if let Some(old) = old {
                // Nothing better can be done where this fails as well: the old one keeps its odd name.
                if fs::rename(old.path(), dir).is_err() {
                    let _ = old.keep();
                }
            }
            return Err(failed(error));
        }
        sync(parent).map_err(failed)
    }

    fn write(&self, dir: &Path, made: &serde_json::Value) -> Result<()> {
        let mut tensors = Vec::new();
        matrix_tensors("", &self.train, &mut tensors);
        write_tensors(&dir.join("train.safetensors"), tensors)?;
        for (name, part) in [("validation", &self.validation), ("test", &self.test)] {
            if let Some(part) = part {
                let mut tensors = vec![("users".to_owned(), Tensor::of(&part.users, Dtype::U32))];
                matrix_tensors("history_", &part.history, &mut tensors);
                matrix_tensors("target_", &part.target, &mut tensors);
                write_tensors(&dir.join(format!("{name}.safetensors")), tensors)?;
            }
        }
        let counts = self.train.popularity();
        let items = self.items.iter().zip(&counts).map(|(id, count)| [id.to_owned(), count.to_string()]);
        write_csv(&dir.join("items.csv"), ["item", "count"], items)?;
        write_csv(&dir.join("users.csv"), ["user"], self.users.iter().map(|id| [id.to_owned()]))?;

        // The writer of tensors goes through temporary files, which only their owner may read.
        let mode = fs::metadata(dir.join("users.csv")).map_err(|e| Error::io("writing", dir, &e))?.permissions();
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(dir).map_err(|e| Error::io("writing", dir, &e))? {
            let path = entry.map_err(|e| Error::io("writing", dir, &e))?.path();
            fs::set_permissions(&path, mode.clone()).map_err(|e| Error::io("writing", &path, &e))?;
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            files.insert(name, sum(&path)?);
        }
        let size = |part: &Part| HeldOutSize { users: part.target.users(), targets: part.target.events() };
        let manifest = Manifest {
            format: FORMAT.to_owned(),
            version: VERSION,
            users: self.users.len(),
            items: self.items.len(),
            train_users: self.train.users(),
            train_events: self.train.events(),
            validation: self.validation.as_ref().map(size),
            test: self.test.as_ref().map(size),
            made: made.clone(),
            files,
        };
        let path = dir.join(MANIFEST);
        let failed = |e: io::Error| Error::io("writing", &path, &e);
        let mut text = serde_json::to_vec_pretty(&manifest).map_err(|e| failed(e.into()))?;
        text.push(b'\n');
        fs::write(&path, text).map_err(failed)?;
        for name in manifest.files.keys() {
            sync(&dir.join(name)).map_err(failed)?;
        }
        sync(&path).and_then(|()| sync(dir)).map_err(failed)
    }

    /// Opens a prepared data set. Events are mapped, not read; [`verify`] reads and checks everything.
    ///
    /// # Errors
    /// Where the folder is not a prepared data set, or its files do not fit together.
    pub fn open(dir: &Path) -> Result<Self> {
        let manifest = Manifest::read(dir)?;
        for (name, expected) in &manifest.files {
            let path = dir.join(name);
            let found = fs::metadata(&path).map_err(|e| Error::io("reading", &path, &e))?.len();
            if found != expected.bytes {
                return Err(damaged(&path, format!("{found} bytes instead of {}", expected.bytes)));
            }
        }
        let items = read_ids(&dir.join("items.csv"), manifest.items)?;
        let users = read_ids(&dir.join("users.csv"), manifest.users)?;
        let train = Tensors::open(&dir.join("train.safetensors"))?.matrix("", items.len())?;
        let part = |name: &str, wanted: bool| -> Result<Option<Part>> {
            if !wanted {
                return Ok(None);
            }
            let tensors = Tensors::open(&dir.join(name))?;
            let (history, target) = (tensors.matrix("history_", items.len())?, tensors.matrix("target_", items.len())?);
            let users = tensors.array::<u32>("users", Dtype::U32)?;
            let users = users.ok_or_else(|| damaged(&tensors.path, "`users` is missing".to_owned()))?.to_vec();
            Ok(Some(Part { users, history, target }))
        };
        let validation = part("validation.safetensors", manifest.validation.is_some())?;
        let test = part("test.safetensors", manifest.test.is_some())?;
        Self::new(train, validation, test, items, users).map_err(|e| e.context(dir.display()))
    }
}

/// Reads every byte of a prepared data set: checksums, and the invariants of every matrix.
///
/// # Errors
/// Names the first file that is not as it was written.
pub fn verify(dir: &Path) -> Result<()> {
    for (name, expected) in &Manifest::read(dir)?.files {
        let path = dir.join(name);
        if sum(&path)? != *expected {
            return Err(damaged(&path, "its checksum is not that of dataset.json".to_owned()));
        }
    }
    let dataset = Dataset::open(dir)?;
    let parts = [&dataset.validation, &dataset.test].into_iter().flatten();
    let matrices = parts.flat_map(|part| [&part.history, &part.target]).chain([&dataset.train]);
    matrices.into_iter().try_for_each(Matrix::check).map_err(|e| e.context(dir.display()))
}

fn damaged(path: &Path, what: String) -> Error {
    Error::data(format!("{}: the file is damaged: {what}; prepare the data set again", path.display()))
}

/// A new folder beside the target, on the same file system, so that a rename puts it in place.
fn sibling(parent: &Path, name: &std::ffi::OsStr) -> io::Result<tempfile::TempDir> {
    let prefix = format!(".{}.", name.to_string_lossy());
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
    builder.prefix(&prefix).tempdir_in(parent)
}

/// Waits until a file or folder is on the disk.
fn sync(path: &Path) -> io::Result<()> {
    // Windows has no handle of a folder to wait for.
    if cfg!(windows) && path.is_dir() { Ok(()) } else { File::open(path)?.sync_all() }
}

fn sum(path: &Path) -> Result<FileSum> {
    let failed = |e: io::Error| Error::io("reading", path, &e);
    let mut file = File::open(path).map_err(failed)?;
    let (mut hasher, mut bytes, mut buffer) = (crc32fast::Hasher::new(), 0, vec![0; 1 << 18]);
    loop {
        match file.read(&mut buffer).map_err(failed)? {
            0 => return Ok(FileSum { bytes, crc32: hasher.finalize() }),
            n => {
                hasher.update(&buffer[..n]);
                bytes += n as u64;
            }
        }
    }
}

/// An array on its way to a file.
struct Tensor<'a> {
    dtype: Dtype,
    shape: [usize; 1],
    bytes: &'a [u8],
}

impl<'a> Tensor<'a> {
    fn of<T: Pod>(values: &'a [T], dtype: Dtype) -> Self {
        Self { dtype, shape: [values.len()], bytes: bytemuck::cast_slice(values) }
    }
}

impl View for Tensor<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        self.bytes.into()
    }
    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

fn matrix_tensors<'a>(prefix: &str, matrix: &'a Matrix, to: &mut Vec<(String, Tensor<'a>)>) {
    to.push((format!("{prefix}indptr"), Tensor::of(matrix.indptr(), Dtype::U64)));
    to.push((format!("{prefix}indices"), Tensor::of(matrix.indices(), Dtype::U32)));
    if let Some(values) = matrix.values() {
        to.push((format!("{prefix}values"), Tensor::of(values, Dtype::F32)));
    }
}

fn write_tensors(path: &Path, tensors: Vec<(String, Tensor<'_>)>) -> Result<()> {
    safetensors::serialize_to_file(tensors, None, path).map_err(|error| match error {
        safetensors::SafeTensorError::IoError(e) => Error::io("writing", path, &e),
        e => Error::failure(format!("{}: writing failed: {e}", path.display())),
    })
}

fn write_csv<const N: usize>(path: &Path, header: [&str; N], rows: impl Iterator<Item = [String; N]>) -> Result<()> {
    let write = || -> csv::Result<()> {
        let mut writer = csv::Writer::from_path(path)?;
        writer.write_record(header)?;
        for row in rows {
            writer.write_record(row)?;
        }
        Ok(writer.flush()?)
    };
    write().map_err(|error| match error.into_kind() {
        csv::ErrorKind::Io(e) => Error::io("writing", path, &e),
        kind => Error::failure(format!("{}: writing failed: {kind:?}", path.display())),
    })
}

/// The first column of a file with a header.
fn read_ids(path: &Path, count: u32) -> Result<Vocabulary> {
    let wrong = |e: csv::Error| damaged(path, e.to_string());
    let mut reader = csv::ReaderBuilder::new().flexible(true).from_path(path).map_err(wrong)?;
    let (mut record, mut ids) = (csv::ByteRecord::new(), Vocabulary::default());
    while reader.read_byte_record(&mut record).map_err(wrong)? {
        let id = std::str::from_utf8(record.get(0).unwrap_or_default());
        ids.push(id.map_err(|e| damaged(path, e.to_string()))?);
    }
    if ids.len() != count {
        return Err(damaged(path, format!("{} ids instead of {count}", ids.len())));
    }
    Ok(ids)
}

/// A mapped file of arrays.
struct Tensors {
    path: std::path::PathBuf,
    map: Arc<Mmap>,
    /// Where the arrays begin, behind the header.
    start: usize,
    metadata: safetensors::tensor::Metadata,
}

impl Tensors {
    fn open(path: &Path) -> Result<Self> {
        let failed = |e: io::Error| Error::io("reading", path, &e);
        let file = File::open(path).map_err(failed)?;
        // SAFETY: the map is read only. The file was put in place by a rename and nothing here writes
        // to it again, so it changes only where somebody else does so on purpose.
        let map = unsafe { Mmap::map(&file) }.map_err(failed)?;
        let (header, metadata) = SafeTensors::read_metadata(&map).map_err(|e| damaged(path, e.to_string()))?;
        Ok(Self { path: path.to_owned(), map: Arc::new(map), start: header + 8, metadata })
    }

    fn array<T: Pod + Send + Sync>(&self, name: &str, dtype: Dtype) -> Result<Option<Array<T>>> {
        let Some(info) = self.metadata.info(name) else { return Ok(None) };
        let range = self.start + info.data_offsets.0..self.start + info.data_offsets.1;
        let bytes = self.map.get(range.clone()).filter(|bytes| bytes.len() % size_of::<T>() == 0);
        let bytes = bytes.filter(|_| info.dtype == dtype && info.shape.len() == 1);
        let bytes = bytes.ok_or_else(|| damaged(&self.path, format!("`{name}` is not a row of {dtype:?}")))?;
        // Our own files are aligned; those of another writer may not be.
        Ok(Some(match bytemuck::try_cast_slice::<u8, T>(bytes) {
            Ok(_) => Array::shared(Mapped { map: self.map.clone(), range, of: PhantomData }),
            Err(_) => bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect::<Vec<T>>().into(),
        }))
    }

    fn matrix(&self, prefix: &str, items: u32) -> Result<Matrix> {
        let missing = |name: &str| damaged(&self.path, format!("`{prefix}{name}` is missing"));
        let indptr = self.array(&format!("{prefix}indptr"), Dtype::U64)?.ok_or_else(|| missing("indptr"))?;
        let indices = self.array(&format!("{prefix}indices"), Dtype::U32)?.ok_or_else(|| missing("indices"))?;
        let values = self.array(&format!("{prefix}values"), Dtype::F32)?;
        Matrix::trusted(items, indptr, indices, values).map_err(|e| e.context(self.path.display()))
    }
}

/// Part of a mapped file, as an array.
struct Mapped<T> {
    map: Arc<Mmap>,
    range: Range<usize>,
    of: PhantomData<T>,
}

impl<T: Pod> Deref for Mapped<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // Alignment and length were checked where this was made.
        bytemuck::cast_slice(&self.map[self.range.clone()])
    }
}
