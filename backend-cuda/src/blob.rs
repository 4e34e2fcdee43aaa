//! The kernels, compiled ahead: one file with an image of every program for every kind of GPU.
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `vaecf k1` |
//! | 4 | CRC-32 of what follows, little-endian |
//! | the rest | a zstd frame of: the length of the index (4 bytes, little-endian), the index in JSON, and the code of each image, in the order of the index, with nothing between |
//!
//! The images are compressed as one, because those of neighbouring targets are nearly the same.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

const MAGIC: &[u8; 8] = b"vaecf k1";

/// The level of zstd: slow to write, which is done once, and as quick as any to read.
const LEVEL: i32 = 19;

/// What is wrong with a file of kernels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damaged(String);

impl fmt::Display for Damaged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the compiled kernels are damaged: {}; install this program again", self.0)
    }
}

impl std::error::Error for Damaged {}

/// How far the code of an image carries. In rising order of how well it fits a device that runs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Reach {
    /// PTX, which the driver compiles: this compute capability and every later one.
    Later,
    /// Instructions of all devices of this major number, from this minor number on.
    Major,
    /// Instructions of this compute capability alone.
    Exact,
}

/// What an image is compiled for, under the compiler's name for it: `sm_80`, `sm_90a`, `compute_80`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Target {
    reach: Reach,
    major: u32,
    minor: u32,
}

impl Target {
    /// Whether a device of this compute capability runs it.
    pub fn runs_on(self, major: u32, minor: u32) -> bool {
        match self.reach {
            Reach::Later => (major, minor) >= (self.major, self.minor),
            Reach::Major => major == self.major && minor >= self.minor,
            Reach::Exact => (major, minor) == (self.major, self.minor),
        }
    }

    /// Whether it is PTX, to be compiled by the driver, and no machine code.
    pub fn is_ptx(self) -> bool {
        self.reach == Reach::Later
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (before, after) = match self.reach {
            Reach::Later => ("compute_", ""),
            Reach::Major => ("sm_", ""),
            Reach::Exact => ("sm_", "a"),
        };
        write!(f, "{before}{}{}{after}", self.major, self.minor)
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (reach, number) = match (text.strip_prefix("compute_"), text.strip_prefix("sm_")) {
            (Some(number), _) => (Reach::Later, number),
            (_, Some(number)) if number.ends_with('a') => (Reach::Exact, &number[..number.len() - 1]),
            (_, Some(number)) => (Reach::Major, number),
            _ => (Reach::Later, ""),
        };
        // The last digit is the minor number.
        match number.parse::<u16>() {
            Ok(number @ 10..) => Ok(Self { reach, major: u32::from(number) / 10, minor: u32::from(number) % 10 }),
            _ => Err(format!("{text:?} is no target")),
        }
    }
}

impl TryFrom<String> for Target {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Target> for String {
    fn from(target: Target) -> Self {
        target.to_string()
    }
}

/// A kernel of an image, and what one block of it takes. Of PTX they are the figures of the same program as
/// machine code of the same compute capability; what a later device makes of it, only its driver knows.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Kernel {
    /// Its name in the image.
    pub name: String,
    /// Threads in a block, at the most.
    pub threads: u32,
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of shared memory, besides those chosen at launch.
    pub shared: u32,
}

/// A program compiled for a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Image<'a> {
    /// The source file's name without `.cu`.
    pub stem: &'a str,
    /// What it is compiled for.
    pub target: Target,
    /// Its kernels.
    pub kernels: &'a [Kernel],
    /// A cubin; or PTX as text, without a zero at the end.
    pub code: &'a [u8],
}

impl<'a> Image<'a> {
    /// The kernel of this name.
    pub fn kernel(&self, name: &str) -> Option<&'a Kernel> {
        self.kernels.iter().find(|kernel| kernel.name == name)
    }
}

/// An image in the index.
#[derive(Debug, Deserialize, Serialize)]
struct Entry {
    stem: String,
    target: Target,
    size: usize,
    kernels: Vec<Kernel>,
}

/// A file of kernels, unpacked.
#[derive(Debug)]
pub struct Blob {
    entries: Vec<Entry>,
    code: Vec<u8>,
}

impl Blob {
    /// Reads what [`Blob::pack`] has written.
    ///
    /// # Errors
    /// Where a single bit is not as it was written.
    pub fn open(bytes: &[u8]) -> Result<Self, Damaged> {
        let damaged = |what: &str| Damaged(what.into());
        let rest = bytes.strip_prefix(MAGIC).ok_or_else(|| damaged("they do not begin as they should"))?;
        let (sum, frame) = rest.split_first_chunk().ok_or_else(|| damaged("they are cut short"))?;
        if crc32fast::hash(frame) != u32::from_le_bytes(*sum) {
            return Err(damaged("their checksum is wrong"));
        }
        let mut code = zstd::decode_all(frame).map_err(|e| Damaged(e.to_string()))?;
        let index = code.split_first_chunk().and_then(|(len, rest)| rest.get(..u32::from_le_bytes(*len) as usize));
        let index = index.ok_or_else(|| damaged("their index is cut short"))?;
        let entries: Vec<Entry> = serde_json::from_slice(index).map_err(|e| Damaged(format!("their index, {e}")))?;
        code.drain(..4 + index.len());
        let sum = entries.iter().try_fold(0_usize, |sum, entry| sum.checked_add(entry.size));
        match sum == Some(code.len()) {
            true => Ok(Self { entries, code }),
            false => Err(damaged("their code is not as long as their index says")),
        }
    }

    /// The images as a file: the same images give the same bytes.
    pub fn pack(images: &[Image<'_>]) -> Vec<u8> {
        let entry = |image: &Image<'_>| Entry {
            stem: image.stem.into(),
            target: image.target,
            size: image.code.len(),
            kernels: image.kernels.to_vec(),
        };
        let index = serde_json::to_vec(&images.iter().map(entry).collect::<Vec<_>>()).expect("plain structs");
        let mut content = u32::try_from(index.len()).expect("an index is small").to_le_bytes().to_vec();
        content.extend(index);
        images.iter().for_each(|image| content.extend(image.code));
        seal(&content)
    }

    /// The images, in the order of the file.
    pub fn images(&self) -> impl Iterator<Item = Image<'_>> {
        let mut rest = &self.code[..];
        self.entries.iter().map(move |entry| {
            let (code, after) = rest.split_at(entry.size);
            rest = after;
            Image { stem: &entry.stem, target: entry.target, kernels: &entry.kernels, code }
        })
    }

    /// The image of a program that fits a device best: the code of exactly its compute capability, or else of the
    /// highest below it with the same major number, or else PTX. None where it runs no image.
    pub fn module(&self, stem: &str, major: u32, minor: u32) -> Option<Image<'_>> {
        let fits = |image: &Image<'_>| image.stem == stem && image.target.runs_on(major, minor);
        self.images().filter(fits).max_by_key(|image| image.target)
    }
}

/// The head of the file and the compressed content.
fn seal(content: &[u8]) -> Vec<u8> {
    let frame = zstd::bulk::compress(content, LEVEL).expect("compressing in memory");
    [&MAGIC[..], &crc32fast::hash(&frame).to_le_bytes(), &frame].concat()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::{collection::vec, prelude::*, sample::Index};

    use super::*;

    const TARGETS: [&str; 8] = ["sm_75", "sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120", "compute_80"];

    /// Images as the compiler would make them, owned.
    type Owned = (String, Target, Vec<Kernel>, Vec<u8>);

    fn owned() -> impl Strategy<Value = Owned> {
        let kernel = ("[a-z_0-9]{1,12}", 1..=1024_u32, 1..=255_u32, 0..=49152_u32)
            .prop_map(|(name, threads, registers, shared)| Kernel { name, threads, registers, shared });
        let target = prop::sample::select(&TARGETS[..]).prop_map(|name| name.parse().unwrap());
        ("[a-z_]{1,8}", target, vec(kernel, 0..4), vec(any::<u8>(), 0..300))
    }

    fn lend((stem, target, kernels, code): &Owned) -> Image<'_> {
        Image { stem, target: *target, kernels, code }
    }

    fn whole() -> Blob {
        let all = TARGETS.map(|name| ("a".to_owned(), name.parse().unwrap(), Vec::new(), name.as_bytes().to_vec()));
        Blob::open(&Blob::pack(&all.each_ref().map(lend))).unwrap()
    }

    #[test]
    fn each_device_gets_the_code_that_fits_it() {
        let blob = whole();
        let chosen = |major, minor| blob.module("a", major, minor).map(|image| image.target.to_string());
        let expected = BTreeMap::from([
            ((6, 1), None),
            ((7, 0), None),
            ((7, 5), Some("sm_75")),
            ((8, 0), Some("sm_80")),
            ((8, 6), Some("sm_86")),
            ((8, 7), Some("sm_86")),
            ((8, 9), Some("sm_89")),
            ((9, 0), Some("sm_90a")),
            ((9, 1), Some("compute_80")),
            ((10, 0), Some("sm_100")),
            ((10, 3), Some("sm_100")),
            ((11, 0), Some("compute_80")),
            ((12, 0), Some("sm_120")),
            ((12, 1), Some("sm_120")),
            ((13, 0), Some("compute_80")),
        ]);
        for ((major, minor), target) in expected {
            assert_eq!(chosen(major, minor).as_deref(), target, "{major}.{minor}");
        }
        assert_eq!(blob.module("b", 9, 0), None);
    }

    #[test]
    fn what_is_no_target_is_none() {
        for text in ["", "sm_", "sm_a", "sm_9", "sm_90b", "compute_", "compute_80a", "80", "sm_-80", "sm_999999"] {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_packed_is_opened(all in vec(owned(), 0..6)) {
            let images: Vec<_> = all.iter().map(lend).collect();
            let bytes = Blob::pack(&images);
            prop_assert_eq!(&bytes, &Blob::pack(&images));
            let blob = Blob::open(&bytes).unwrap();
            prop_assert_eq!(blob.images().collect::<Vec<_>>(), images);
        }

        #[test]
        fn a_device_gets_what_it_runs_and_nothing_better_is_there(
            all in vec(owned(), 0..6), major in 6..14_u32, minor in 0..10_u32, at in any::<Index>(),
        ) {
            let blob = Blob::open(&Blob::pack(&all.iter().map(lend).collect::<Vec<_>>())).unwrap();
            let Some((stem, ..)) = (!all.is_empty()).then(|| at.get(&all)) else { return Ok(()) };
            let run: Vec<_> = blob.images().filter(|i| i.stem == stem && i.target.runs_on(major, minor)).collect();
            let chosen = blob.module(stem, major, minor);
            prop_assert_eq!(chosen.is_some(), !run.is_empty());
            if let Some(chosen) = chosen {
                prop_assert!(run.contains(&chosen));
                prop_assert!(!chosen.target.is_ptx() || run.iter().all(|image| image.target.is_ptx()));
                prop_assert!(run.iter().all(|image| image.target <= chosen.target));
            }
        }

        #[test]
        fn a_turned_bit_is_an_error(all in vec(owned(), 0..4), at in any::<Index>(), bit in 0..8_u8) {
            let mut bytes = Blob::pack(&all.iter().map(lend).collect::<Vec<_>>());
            let at = at.index(bytes.len());
            bytes[at] ^= 1_u8 << bit;
            prop_assert!(Blob::open(&bytes).is_err());
        }

        #[test]
        fn a_file_cut_short_or_made_longer_is_an_error(all in vec(owned(), 0..4), at in any::<Index>()) {
            let mut bytes = Blob::pack(&all.iter().map(lend).collect::<Vec<_>>());
            prop_assert!(Blob::open(&bytes[..at.index(bytes.len())]).is_err());
            bytes.push(0);
            prop_assert!(Blob::open(&bytes).is_err());
        }

        // Past the checksum, too, nothing is taken for granted.
        #[test]
        fn any_content_is_an_error_and_no_panic(content in vec(any::<u8>(), 0..200), frame in vec(any::<u8>(), 0..200)) {
            prop_assert!(Blob::open(&seal(&content)).is_err());
            let bytes = [&MAGIC[..], &crc32fast::hash(&frame).to_le_bytes(), &frame].concat();
            prop_assert!(Blob::open(&bytes).is_err());
        }

        #[test]
        fn sizes_that_do_not_add_up_are_an_error(sizes in vec(any::<usize>(), 1..4), code in vec(any::<u8>(), 0..20)) {
            let entry = |&size: &usize| format!(r#"{{"stem":"a","target":"sm_80","size":{size},"kernels":[]}}"#);
            let index = format!("[{}]", sizes.iter().map(entry).collect::<Vec<_>>().join(","));
            let content = [&(index.len() as u32).to_le_bytes()[..], index.as_bytes(), &code].concat();
            let sum: u128 = sizes.iter().map(|&size| size as u128).sum();
            prop_assert_eq!(Blob::open(&seal(&content)).is_ok(), sum == code.len() as u128);
        }
    }
}
