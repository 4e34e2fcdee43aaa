//! Ctrl-C: the first asks to stop, the second ends the process.

use std::sync::atomic::{AtomicBool, Ordering};

use vaecf_core::{Error, Result};

static ASKED: AtomicBool = AtomicBool::new(false);

/// From now on the first interrupt is only noted; see [`asked`].
pub(crate) fn listen() -> Result<()> {
    let heard = || {
        if ASKED.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
    };
    match ctrlc::set_handler(heard) {
        Ok(()) | Err(ctrlc::Error::MultipleHandlers) => Ok(()),
        Err(e) => Err(Error::failure(format!("interrupts cannot be caught: {e}"))),
    }
}

/// Whether the run was asked to stop.
pub(crate) fn asked() -> bool {
    ASKED.load(Ordering::Relaxed)
}
