//! One error type: a sentence a person can act on, and the kind that decides the exit code.

use std::fmt;

use crate::backend::Fault;

/// What kind of thing went wrong; the command line turns it into an exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A failure that is none of the others (exit code 1), such as a full disk.
    Failure,
    /// The caller asked for something that cannot be (exit code 2), such as zero latent units.
    Usage,
    /// A file or data set is not what it should be (exit code 3).
    Data,
    /// The device, its driver or its memory (exit code 4).
    Device,
}

/// An error: one sentence that says what, where, and what to do about it.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    message: String,
    fault: Option<Fault>,
    /// It is another member's, of which this one was told.
    echo: bool,
}

/// The result of everything in this crate that can fail.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of the given kind.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), fault: None, echo: false }
    }

    /// A failure that is nobody's input: a full disk, a thread that cannot start.
    pub fn failure(message: impl Into<String>) -> Self {
        Self::new(Kind::Failure, message)
    }

    /// A request that cannot be carried out as asked.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }

    /// A file or a data set that is not what it should be.
    pub fn data(message: impl Into<String>) -> Self {
        Self::new(Kind::Data, message)
    }

    /// The error of a member that stops because its group has failed elsewhere.
    pub(crate) fn of_group(message: String) -> Self {
        Self { echo: true, ..Self::failure(message) }
    }

    /// Whether this tells of a failure of another member of the [group](crate::group), which reports it, too.
    pub fn is_echo(&self) -> bool {
        self.echo
    }

    /// The file system refused: `doing` is what was tried ("reading", "writing"). A missing input is
    /// bad data, everything else is a failure.
    pub fn io(doing: &str, path: &std::path::Path, error: &std::io::Error) -> Self {
        use std::io::ErrorKind as K;
        let path = path.display();
        match error.kind() {
            K::NotFound if doing == "reading" => Self::data(format!("{path}: there is no such file or folder")),
            K::StorageFull => Self::failure(format!("{path}: the disk is full; free some space and run again")),
            K::PermissionDenied => {
                Self::failure(format!("{path}: {doing} is not permitted; check the owner and the mode"))
            }
            _ => Self::failure(format!("{path}: {doing} failed: {error}")),
        }
    }

    /// What the backend reported, where that is the cause: out of memory asks for another answer than a lost device.
    pub fn fault(&self) -> Option<&Fault> {
        self.fault.as_ref()
    }

    /// What kind of error it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The same error with a place in front: `context("ratings.csv:3")` gives "ratings.csv:3: ...".
    #[must_use]
    pub fn context(mut self, place: impl fmt::Display) -> Self {
        self.message = format!("{place}: {}", self.message);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        let echo = fault == Fault::Alarm;
        Self { echo, fault: Some(fault.clone()), ..Self::new(Kind::Device, fault.to_string()) }
    }
}
