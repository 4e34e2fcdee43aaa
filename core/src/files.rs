//! Writing files so that nobody ever sees half of one.

use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

use crate::error::{Error, Result};

/// How the names of files start that are being written.
pub(crate) const DRAFT: &str = ".writing-";

/// Writes a file whole or not at all: under a temporary name beside it, flushed to the disk, then
/// renamed. Where `fill` fails the temporary file is removed and what was there before stays.
///
/// # Errors
/// What `fill` or the file system reports.
pub fn write_atomic(path: &Path, fill: impl FnOnce(&mut BufWriter<&File>) -> Result<()>) -> Result<()> {
    let failed = |e: &std::io::Error| Error::io("writing", path, e);
    let folder = folder_of(path);
    let mut builder = tempfile::Builder::new();
    // Temporary files are private; a result is as readable as any new file.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut temporary = builder.prefix(DRAFT).tempfile_in(&folder).map_err(|e| failed(&e))?;
    let mut writer = BufWriter::with_capacity(1 << 20, temporary.as_file());
    fill(&mut writer)?;
    writer.flush().map_err(|e| failed(&e))?;
    drop(writer);
    temporary.as_file_mut().sync_all().map_err(|e| failed(&e))?;
    temporary.persist(path).map_err(|e| failed(&e.error))?;
    sync_folder(&folder);
    Ok(())
}

/// Removes what a killed process left half-written in a folder. Only for folders that no other process
/// is writing to.
pub fn sweep(folder: &Path) {
    let left = fs::read_dir(folder).into_iter().flatten().flatten();
    for draft in left.filter(|entry| entry.file_name().to_string_lossy().starts_with(DRAFT)) {
        // What cannot be removed does no harm.
        let _ = fs::remove_file(draft.path()).or_else(|_| fs::remove_dir_all(draft.path()));
    }
}

/// Makes renames in a folder last. Some file systems cannot; the rename itself is done either way.
pub fn sync_folder(folder: &Path) {
    if let Ok(folder) = File::open(folder) {
        let _ = folder.sync_all();
    }
}

/// The folder a path lies in; the current one for a bare name.
pub fn folder_of(path: &Path) -> PathBuf {
    path.parent().filter(|p| !p.as_os_str().is_empty()).map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// A text file, written atomically.
///
/// # Errors
/// What the file system reports.
pub fn write_text(path: &Path, text: &str) -> Result<()> {
    write_atomic(path, |w| w.write_all(text.as_bytes()).map_err(|e| Error::io("writing", path, &e)))
}
