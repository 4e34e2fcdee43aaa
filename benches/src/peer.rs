//! The PyTorch peer: one process that waits for commands, so that it takes turns with us on the same
//! data, in the same run.

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use vaecf_core::{Error, Result, matrix::Matrix};

const SCRIPT: &str = include_str!("../peers/torch_multvae.py");

/// A running peer.
pub struct Peer {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    /// What it says it is: its version.
    pub name: String,
}

impl Peer {
    /// Starts the peer with a Python that has torch and numpy, and options of its script, such as `--device cuda`.
    ///
    /// # Errors
    /// Where the interpreter is missing, lacks a package, or fails on the data.
    pub fn start(
        python: &Path,
        matrix: &Matrix,
        batch: u32,
        threads: usize,
        options: &[String],
        folder: &Path,
    ) -> Result<Self> {
        let write = |name: &str, bytes: &[u8]| {
            let path = folder.join(name);
            std::fs::write(&path, bytes).map_err(|e| Error::io("writing", &path, &e))
        };
        let bytes = |v: &[u64]| v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        write("peer.py", SCRIPT.as_bytes())?;
        write("indptr.u64", &bytes(matrix.indptr()))?;
        write("indices.u32", &matrix.indices().iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())?;
        let mut process = Command::new(python)
            .arg(folder.join("peer.py"))
            .arg(folder)
            .args([matrix.items().to_string(), batch.to_string(), threads.to_string()])
            .args(options)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| Error::io("starting", python, &e))?;
        let (Some(input), Some(output)) = (process.stdin.take(), process.stdout.take()) else {
            return Err(Error::failure("the peer has no pipes"));
        };
        let mut peer = Self { process, input, output: BufReader::new(output), name: String::new() };
        peer.name = peer.line()?;
        Ok(peer)
    }

    /// Seconds of a step, NaN where the peer cannot take it and has said why; `what` is `train` or `infer`, `input` is `sparse` or `dense`.
    ///
    /// # Errors
    /// Where the peer has ended.
    pub fn seconds(&mut self, what: &str, input: &str, steps: usize) -> Result<f64> {
        writeln!(self.input, "{what} {input} {steps}")
            .map_err(|e| Error::failure(format!("the peer has ended: {e}")))?;
        let line = self.line()?;
        line.parse().map_err(|_| Error::failure(format!("the peer answered {line:?}, not seconds")))
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        match self.output.read_line(&mut line) {
            Ok(n) if n > 0 => Ok(line.trim().to_owned()),
            _ => Err(Error::failure(
                "the PyTorch peer has ended; its message is above (it needs `pip install torch numpy`)",
            )),
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
