//! The way between host and device.

use std::rc::Rc;

use vaecf_core::backend::{Buf, Result};

use crate::{
    Cuda,
    driver::{Event, FEW},
    memory,
};

impl Cuda {
    /// Sends elements, on the second queue where they are many.
    fn send(&mut self, dst: Buf, to: u64, count: usize, size: usize, convert: impl Fn(usize, &mut [u8])) -> Result {
        if count * size <= FEW {
            return self.staging.send(&self.context, &self.main, to, count, size, convert).map(drop);
        }
        // What is there now is used by the work before.
        let before = self.context.event(false)?;
        self.main.record(&before)?;
        self.second.wait(&before)?;
        self.staging.send(&self.context, &self.second, to, count, size, convert)?;
        let after: Rc<Event> = Rc::new(self.context.event(false)?);
        self.second.record(&after)?;
        self.table.arrives(dst, after);
        Ok(())
    }

    /// Sends elements of four bytes.
    pub(crate) fn send_as_it_is<T: bytemuck::Pod>(
        &mut self,
        dst: Buf,
        at: u64,
        src: &[T],
        what: &'static str,
    ) -> Result {
        let to = self.table.range(dst, at, src.len() as u64, what, &self.main)?.master() + 4 * at;
        self.send(dst, to, src.len(), 4, |from, bytes| {
            bytes.copy_from_slice(bytemuck::cast_slice(&src[from..from + bytes.len() / 4]));
        })
    }

    pub(crate) fn upload_floats(&mut self, dst: Buf, at: u64, len: usize, value: impl Fn(usize) -> f64) -> Result {
        let precision = self.precision;
        let buffer = self.table.range(dst, at, len as u64, "floats", &self.main)?;
        let (kind, master, copy) = (buffer.kind, buffer.master(), buffer.copy());
        let wide = |from: usize, bytes: &mut [u8]| {
            for (i, four) in bytes.chunks_exact_mut(4).enumerate() {
                four.copy_from_slice(&(value(from + i) as f32).to_le_bytes());
            }
        };
        let half = |from: usize, bytes: &mut [u8]| {
            for (i, two) in bytes.chunks_exact_mut(2).enumerate() {
                two.copy_from_slice(&memory::narrow(precision, value(from + i)));
            }
        };
        if kind == memory::Kind::Half {
            return self.send(dst, master + 2 * at, len, 2, half);
        }
        self.send(dst, master + 4 * at, len, 4, wide)?;
        match copy {
            Some(copy) => {
                // Of the masters, as they were rounded.
                self.send(dst, copy + 2 * at, len, 2, |from, bytes| {
                    for (i, two) in bytes.chunks_exact_mut(2).enumerate() {
                        two.copy_from_slice(&memory::narrow(precision, f64::from(value(from + i) as f32)));
                    }
                })
            }
            None => Ok(()),
        }
    }

    /// Fetches elements: on the second queue, beside what is queued by now, where it is known when they were `ready`.
    pub(crate) fn fetch(
        &mut self,
        src: Buf,
        ready: Option<Rc<Event>>,
        from: u64,
        count: usize,
        size: usize,
        convert: impl FnMut(usize, &[u8]),
    ) -> Result {
        let Some(ready) = ready else {
            return self.staging.fetch(&self.context, &self.main, from, count, size, convert);
        };
        self.second.wait(&ready)?;
        self.staging.fetch(&self.context, &self.second, from, count, size, convert)?;
        // The next part of it need not wait either.
        self.table.made(src, ready);
        Ok(())
    }

    /// Fetches floats, a stretch at a time: `put(from, values)`.
    pub(crate) fn download_floats(
        &mut self,
        src: Buf,
        at: u64,
        len: usize,
        mut put: impl FnMut(usize, &[f32]),
    ) -> Result {
        let (precision, ready) = (self.precision, self.table.ready(src));
        let buffer = self.table.range(src, at, len as u64, "floats", &self.main)?;
        let (kind, master) = (buffer.kind, buffer.master());
        if kind == memory::Kind::Half {
            let mut wide = Vec::new();
            return self.fetch(src, ready, master + 2 * at, len, 2, |from, bytes| {
                wide.clear();
                wide.extend(bytes.chunks_exact(2).map(|two| memory::widen(precision, [two[0], two[1]])));
                put(from, &wide);
            });
        }
        self.fetch(src, ready, master + 4 * at, len, 4, |from, bytes| put(from, bytemuck::cast_slice(bytes)))
    }
}
