//! Where rows come from: files, folders and streams, and the containers around them.

use std::{
    fmt,
    fs::{self, File},
    io::{self, BufRead, BufReader, Read, Seek},
    path::{Path, PathBuf},
};

use super::{Format, Reader, decode};
use crate::error::{Error, Result};

/// How much of a file decides what it is.
const SAMPLE: u64 = 64 << 10;

/// Containers in containers: `nf_prize_dataset.tar.gz` needs two, and a bomb of them ends here.
const DEEPEST: usize = 5;

/// A file, a folder or a stream of ratings.
pub enum Source {
    /// A file, or a folder of files.
    Path(PathBuf),
    /// A stream such as standard input, with a name for messages.
    Stream(String, Box<dyn Read>),
}

impl Source {
    /// The name in messages.
    pub fn name(&self) -> String {
        match self {
            Self::Path(path) => path.display().to_string(),
            Self::Stream(name, _) => name.clone(),
        }
    }
}

impl<P: Into<PathBuf>> From<P> for Source {
    fn from(path: P) -> Self {
        Self::Path(path.into())
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

impl Reader<'_> {
    pub(super) fn source(&mut self, source: Source) -> Result<()> {
        match source {
            Source::Stream(name, stream) => self.stream(&name, stream),
            Source::Path(path) if path.is_dir() => {
                for file in files(&path)? {
                    self.file(&file)?;
                }
                Ok(())
            }
            Source::Path(path) => self.file(&path),
        }
    }

    fn file(&mut self, path: &Path) -> Result<()> {
        let name = path.display().to_string();
        let failed = |e| Error::io("reading", path, &e);
        let mut file = File::open(path).map_err(failed)?;
        let mut magic = [0; 4];
        let n = (&mut file).take(4).read(&mut magic).map_err(failed)?;
        // A pipe cannot be rewound, and need not be.
        if file.rewind().is_err() {
            return self.stream(&name, Box::new(io::Cursor::new(magic).take(n as u64).chain(file)));
        }
        match &magic {
            b"PK\x03\x04" | b"PK\x05\x06" => self.zip(&name, file),
            b"PAR1" => self.parquet(&name, file),
            _ => self.stream(&name, Box::new(file)),
        }
    }

    /// Looks at the first bytes and unwraps what they show.
    fn stream(&mut self, name: &str, mut input: Box<dyn Read + '_>) -> Result<()> {
        if self.inside.len() == DEEPEST {
            return Err(Error::data(format!("{name}: there are containers in containers, {DEEPEST} deep; unpack it")));
        }
        let mut head = Vec::new();
        input.by_ref().take(SAMPLE).read_to_end(&mut head).map_err(|e| self.unreadable(name, &e))?;
        match head[..] {
            [0x1f, 0x8b, ..] => {
                let inner = flate2::bufread::MultiGzDecoder::new(BufReader::new(io::Cursor::new(head).chain(input)));
                self.within("gzip", |this| this.stream(name, Box::new(inner)))
            }
            [0x28, 0xb5, 0x2f, 0xfd, ..] => {
                let inner = zstd::Decoder::new(io::Cursor::new(head).chain(input));
                let inner = inner.map_err(|e| Error::failure(format!("{name}: no memory for zstd: {e}")))?;
                self.within("zstd", |this| this.stream(name, Box::new(inner)))
            }
            [b'P', b'K', 3, 4, ..] | [b'P', b'K', 5, 6, ..] => self.zip(name, self.spool(name, &head, input)?),
            [b'P', b'A', b'R', b'1', ..] => self.parquet(name, self.spool(name, &head, input)?),
            _ if head.get(257..262) == Some(b"ustar") => self.tar(name, io::Cursor::new(head).chain(input)),
            _ if self.options.format == Some(Format::Parquet) => {
                Err(Error::data(format!("{name}: this is not a Parquet file; leave out --input-format")))
            }
            _ => self.text(name, &head, input),
        }
    }

    /// Zip and Parquet are read from their end, so a stream goes through a temporary file.
    fn spool(&self, name: &str, head: &[u8], mut rest: impl Read) -> Result<File> {
        let failed = |e: io::Error| Error::failure(format!("{name}: the temporary copy failed: {e}"));
        let mut file = tempfile::tempfile().map_err(failed)?;
        io::copy(&mut &*head, &mut file).map_err(failed)?;
        // Reading may fail as well as writing; a damaged container is told by its kind.
        io::copy(&mut rest, &mut file).map_err(|e| match e.kind() {
            io::ErrorKind::StorageFull => failed(e),
            _ => self.unreadable(name, &e),
        })?;
        file.rewind().map_err(failed)?;
        Ok(file)
    }

    fn within(&mut self, container: &'static str, read: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        self.inside.push(container);
        let result = read(self);
        self.inside.pop();
        result
    }

    /// Why bytes did not come: the container around them is broken, or the file system refused.
    pub(super) fn unreadable(&self, name: &str, error: &io::Error) -> Error {
        match self.inside.last() {
            Some(container) => Error::data(format!(
                "{name}: the {container} data is damaged or ends early ({error}); fetch the file again"
            )),
            None => Error::io("reading", Path::new(name), error),
        }
    }

    fn zip(&mut self, name: &str, file: File) -> Result<()> {
        let damaged = |e| Error::data(format!("{name}: the zip archive is damaged ({e}); fetch the file again"));
        let mut archive = zip::ZipArchive::new(BufReader::new(file)).map_err(damaged)?;
        let mut entries = Vec::new();
        for at in 0..archive.len() {
            let entry = archive.by_index_raw(at).map_err(damaged)?;
            if !entry.is_dir() {
                entries.push((decode(entry.name_raw()).into_owned(), at));
            }
        }
        let chosen = choose(entries.iter().map(|entry| entry.0.as_str())).ok_or_else(|| {
            let names: Vec<_> = entries.iter().take(10).map(|entry| entry.0.as_str()).collect();
            Error::data(format!(
                "{name}: none of the files in the zip is named like ratings ({}); unpack it and give the file",
                names.join(", ")
            ))
        })?;
        for at in chosen {
            let (inner, index) = &entries[at];
            let entry = archive.by_index(*index).map_err(damaged)?;
            self.within("zip", |this| this.stream(&format!("{name}/{inner}"), Box::new(entry)))?;
        }
        Ok(())
    }

    fn tar(&mut self, name: &str, input: impl Read) -> Result<()> {
        let mut archive = tar::Archive::new(input);
        let mut found = false;
        for entry in archive.entries().map_err(|e| self.unreadable(name, &e))? {
            let damaged = |e| Error::data(format!("{name}: the tar archive is damaged ({e}); fetch the file again"));
            let entry = entry.map_err(damaged)?;
            let inner = decode(&entry.path_bytes()).into_owned();
            if entry.header().entry_type().is_file()
                && (is_ratings(&inner) || is_block(&inner) || base(&inner).ends_with(".tar"))
            {
                found = true;
                self.within("tar", |this| this.stream(&format!("{name}/{inner}"), Box::new(entry)))?;
            }
        }
        if found {
            return Ok(());
        }
        Err(Error::data(format!(
            "{name}: none of the files in the tar archive is named like ratings; unpack it and give the file"
        )))
    }
}

/// The last part of a path, without the ending of a compression.
fn base(name: &str) -> &str {
    let base = name.rsplit(['/', '\\']).next().unwrap_or_default();
    base.strip_suffix(".gz").or_else(|| base.strip_suffix(".zst")).unwrap_or(base)
}

/// One file that holds all ratings.
fn is_ratings(name: &str) -> bool {
    matches!(base(name), "ratings.csv" | "rating.csv" | "ratings.tsv" | "ratings.dat" | "u.data" | "ratings.parquet")
}

/// One of many files that hold them together.
fn is_block(name: &str) -> bool {
    base(name).ends_with(".txt") && (base(name).starts_with("mv_") || base(name).starts_with("combined_data_"))
}

/// Which of the names to read: the file of ratings nearest to the top, or all blocks in the order of
/// their names, or the only file there is.
fn choose<'a>(names: impl Iterator<Item = &'a str>) -> Option<Vec<usize>> {
    let names: Vec<&str> = names.collect();
    let depth = |at: &usize| (names[*at].matches('/').count(), names[*at]);
    let all = || 0..names.len();
    if let Some(one) = all().filter(|&at| is_ratings(names[at])).min_by_key(depth) {
        return Some(vec![one]);
    }
    let mut blocks: Vec<usize> = all().filter(|&at| is_block(names[at])).collect();
    blocks.sort_unstable_by_key(|&at| names[at]);
    match blocks.is_empty() {
        false => Some(blocks),
        true => (names.len() == 1).then(|| vec![0]),
    }
}

/// The files of a folder that hold ratings.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let paths = list(folder)?;
    let plain: Vec<_> = paths.iter().filter(|path| path.is_file()).collect();
    let names: Vec<_> = plain.iter().map(|path| path.file_name().unwrap_or_default().to_string_lossy()).collect();
    if let Some(chosen) = choose(names.iter().map(AsRef::as_ref)) {
        return Ok(chosen.into_iter().map(|at| plain[at].clone()).collect());
    }
    let training = folder.join("training_set");
    if training.is_dir() {
        return files(&training);
    }
    Err(Error::data(format!(
        "{}: no file in the folder is named like ratings (ratings.csv, ratings.dat, u.data, mv_*.txt, \
         combined_data_*.txt); give the file itself",
        folder.display()
    )))
}

/// What lies in a folder, in the order of names.
pub(crate) fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let failed = |e| Error::io("reading", folder, &e);
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        paths.push(entry.map_err(failed)?.path());
    }
    paths.sort_unstable();
    Ok(paths)
}

/// The lines of a list of ids, plain or compressed.
pub(crate) fn lines(path: &Path) -> Result<Vec<String>> {
    let failed = |e: io::Error| Error::io("reading", path, &e);
    let mut file = BufReader::new(File::open(path).map_err(failed)?);
    let mut bytes = Vec::new();
    match file.fill_buf().map_err(failed)? {
        [0x1f, 0x8b, ..] => flate2::bufread::MultiGzDecoder::new(file).read_to_end(&mut bytes),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => zstd::Decoder::with_buffer(file).and_then(|mut d| d.read_to_end(&mut bytes)),
        _ => file.read_to_end(&mut bytes),
    }
    .map_err(|e| Error::data(format!("{}: the file is damaged or ends early ({e}); fetch it again", path.display())))?;
    Ok(decode(&bytes).lines().map(|line| line.trim().to_owned()).collect())
}
