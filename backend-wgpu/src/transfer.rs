//! The way between host and device.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Poll, Waker},
};

use half::f16;
use vaecf_core::{
    backend::{Buf, Fault, Host, HostMut, Result},
    math::SingleStep,
};

use crate::{Wgpu, context::Context, memory, queue::Command};

/// Bytes that are converted, sent or fetched at once.
const STRETCH: u64 = 32 << 20;

/// What results are copied to before the host can see them.
#[derive(Debug, Default)]
pub(crate) struct Staging(Option<wgpu::Buffer>);

impl Staging {
    fn at_least(&mut self, context: &Context, bytes: u64) -> Result<wgpu::Buffer> {
        match &self.0 {
            Some(buffer) if buffer.size() >= bytes => Ok(buffer.clone()),
            _ => {
                let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
                let buffer = context.buffer_for(bytes.next_power_of_two().max(1 << 12), usage)?;
                self.0 = Some(buffer.clone());
                Ok(buffer)
            }
        }
    }
}

/// The result of a callback, when it has come.
#[derive(Debug)]
struct Reply<T>(Arc<Mutex<(Option<T>, Option<Waker>)>>);

impl<T> Reply<T> {
    fn new() -> (Self, impl FnOnce(T)) {
        let shared = Arc::new(Mutex::new((None, None::<Waker>)));
        let told = Arc::clone(&shared);
        let tell = move |value| {
            let mut state = told.lock().unwrap_or_else(PoisonError::into_inner);
            state.0 = Some(value);
            if let Some(waker) = state.1.take() {
                waker.wake();
            }
        };
        (Self(shared), tell)
    }
}

impl<T> Future for Reply<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<T> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match state.0.take() {
            Some(value) => Poll::Ready(value),
            None => {
                state.1 = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

/// Part of a contract's buffer: a piece, the first byte in it, and how many elements from which one on.
struct Stretch {
    piece: usize,
    byte: u64,
    from: usize,
    count: usize,
}

/// Elements `at..at + len` of `size` bytes, in stretches that each lie in one piece of `each` elements.
fn stretches(at: u64, len: usize, size: u64, each: u64) -> Vec<Stretch> {
    let (mut from, mut stretches) = (0, Vec::new());
    while from < len {
        let element = at + from as u64;
        let within = element % each;
        let count = (each - within).min(STRETCH / size).min((len - from) as u64) as usize;
        stretches.push(Stretch { piece: (element / each) as usize, byte: within * size, from, count });
        from += count;
    }
    stretches
}

impl Wgpu {
    pub(crate) fn send(&mut self, dst: Buf, at: u64, src: Host<'_>) -> Result {
        if self.queue.records() {
            return Err(Fault::Other("nothing can be sent while calls are recorded".into()));
        }
        // What was issued before sees what was there before.
        self.queue.submit(&self.context);
        self.context.check()?;
        match src {
            Host::F32(src) => self.send_floats(dst, at, src.len(), |i| f64::from(src[i])),
            Host::F64(src) => self.send_floats(dst, at, src.len(), |i| src[i]),
            Host::U32(src) => {
                let buffer = self.table.range(dst, at, src.len() as u64, "indices")?.whole().clone();
                for part in stretches(at, src.len(), 4, u64::MAX) {
                    let bytes = bytemuck::cast_slice(&src[part.from..part.from + part.count]);
                    self.context.queue.write_buffer(&buffer, part.byte, bytes);
                    self.context.queue.submit([]);
                }
                Ok(())
            }
            Host::Step(src) => {
                let buffer = self.table.range(dst, at, 1, "steps")?.whole();
                self.context.queue.write_buffer(buffer, 0, bytemuck::bytes_of(&SingleStep::new(src)));
                Ok(())
            }
            Host::Scale(src) => {
                let buffer = self.table.range(dst, at, 1, "scales")?.whole();
                self.context.queue.write_buffer(buffer, 0, bytemuck::bytes_of(src));
                Ok(())
            }
        }
    }

    fn send_floats(&mut self, dst: Buf, at: u64, len: usize, value: impl Fn(usize) -> f64) -> Result {
        let buffer = self.table.range(dst, at, len as u64, "floats")?;
        let (each, pieces, copy) = (buffer.each, buffer.pieces.clone(), buffer.copy.clone());
        if buffer.kind == memory::Kind::Half {
            return self.send_halves(&pieces, each, at, len, |i| f16::from_f64(value(i)));
        }
        let mut bytes = Vec::new();
        for part in stretches(at, len, 4, each) {
            bytes.clear();
            bytes.extend((part.from..part.from + part.count).flat_map(|i| (value(i) as f32).to_le_bytes()));
            self.context.queue.write_buffer(&pieces[part.piece], part.byte, &bytes);
            // What waits to be sent takes memory until then.
            self.context.queue.submit([]);
        }
        if copy.is_empty() {
            return Ok(());
        }
        // Of the masters, as they were rounded.
        self.send_halves(&copy, each, at, len, |i| f16::from_f32(value(i) as f32))
    }

    /// Two halves are a word, and words are what is sent: at either end, one of them may have to stay as it is.
    fn send_halves(
        &mut self,
        pieces: &[wgpu::Buffer],
        each: u64,
        at: u64,
        len: usize,
        value: impl Fn(usize) -> f16,
    ) -> Result {
        if cfg!(target_arch = "wasm32") && (at % 2 == 1 || len % 2 == 1) {
            return Err(Fault::Other("in a browser, halves are sent in pairs".into()));
        }
        for part in stretches(at, len, 2, each) {
            let piece = &pieces[part.piece];
            let first = part.byte / 4 * 4;
            let bytes = (part.byte + 2 * part.count as u64).next_multiple_of(4) - first;
            let mut words = vec![0; bytes as usize];
            if part.byte != first {
                words[..4].copy_from_slice(&pollster::block_on(self.fetch(piece, first, 4))?);
            }
            if part.byte + 2 * part.count as u64 != first + bytes {
                let last = pollster::block_on(self.fetch(piece, first + bytes - 4, 4))?;
                // Its lower half may have come with the first word.
                words[bytes as usize - 2..].copy_from_slice(&last[2..]);
            }
            let halves = words[(part.byte - first) as usize..].chunks_exact_mut(2);
            for (i, half) in (part.from..part.from + part.count).zip(halves) {
                half.copy_from_slice(&value(i).to_le_bytes());
            }
            self.context.queue.write_buffer(piece, first, &words);
            self.context.queue.submit([]);
        }
        Ok(())
    }

    /// [`vaecf_core::backend::Backend::download`], for where waiting is not possible: in a browser.
    ///
    /// # Errors
    /// What the device reports, faults of earlier work included.
    pub async fn download_async(&mut self, src: Buf, at: u64, dst: HostMut<'_>) -> Result {
        match dst {
            HostMut::F32(dst) => self.fetch_floats(src, at, dst.len(), |i, x| dst[i] = x).await,
            HostMut::F64(dst) => self.fetch_floats(src, at, dst.len(), |i, x| dst[i] = f64::from(x)).await,
            HostMut::U32(dst) => {
                let buffer = self.table.range(src, at, dst.len() as u64, "indices")?.whole().clone();
                for part in stretches(at, dst.len(), 4, u64::MAX) {
                    let bytes = self.fetch(&buffer, part.byte, 4 * part.count as u64).await?;
                    bytemuck::cast_slice_mut(&mut dst[part.from..part.from + part.count]).copy_from_slice(&bytes);
                }
                Ok(())
            }
            HostMut::Scale(dst) => {
                let buffer = self.table.range(src, at, 1, "scales")?.whole().clone();
                let bytes = self.fetch(&buffer, 0, size_of_val(dst) as u64).await?;
                bytemuck::bytes_of_mut(dst).copy_from_slice(&bytes);
                Ok(())
            }
        }
    }

    async fn fetch_floats(&mut self, src: Buf, at: u64, len: usize, mut put: impl FnMut(usize, f32)) -> Result {
        let buffer = self.table.range(src, at, len as u64, "floats")?;
        let (each, pieces, kind) = (buffer.each, buffer.pieces.clone(), buffer.kind);
        for part in stretches(at, len, kind.bytes(), each) {
            let first = part.byte / 4 * 4;
            let bytes = (part.byte + kind.bytes() * part.count as u64).next_multiple_of(4) - first;
            let bytes = self.fetch(&pieces[part.piece], first, bytes).await?;
            let bytes = &bytes[(part.byte - first) as usize..];
            let places = part.from..part.from + part.count;
            match kind {
                memory::Kind::Half => {
                    let halves = bytes.chunks_exact(2).map(|two| f16::from_le_bytes([two[0], two[1]]).to_f32());
                    places.zip(halves).for_each(|(i, x)| put(i, x));
                }
                _ => {
                    let floats = bytes.chunks_exact(4).map(bytemuck::pod_read_unaligned);
                    places.zip(floats).for_each(|(i, x)| put(i, x));
                }
            }
        }
        Ok(())
    }

    /// So many bytes of a buffer, when all that was issued before is done.
    pub(crate) async fn fetch(&mut self, buffer: &wgpu::Buffer, at: u64, bytes: u64) -> Result<Vec<u8>> {
        if self.queue.records() {
            return Err(Fault::Other("nothing can be read while calls are recorded".into()));
        }
        let staging = self.staging.at_least(&self.context, bytes)?;
        self.queue.push(&self.context, Command::Copy { from: buffer.clone(), at, to: staging.clone(), bytes });
        self.queue.submit(&self.context);
        let (reply, tell) = Reply::new();
        staging.map_async(wgpu::MapMode::Read, ..bytes, tell);
        let mapped = match self.reply(reply).await {
            Ok(mapped) => mapped,
            Err(fault) => {
                // It may be mapped or not, and is not used again.
                self.staging = Staging::default();
                return Err(fault);
            }
        };
        mapped.map_err(|error| self.refused(&error))?;
        let view = staging.get_mapped_range(..bytes).map_err(|error| self.refused(&error))?;
        let copied = view.to_vec();
        drop(view);
        staging.unmap();
        Ok(copied)
    }

    /// [`vaecf_core::backend::Backend::sync`], for where waiting is not possible: in a browser.
    ///
    /// # Errors
    /// The first fault of the work until now.
    pub async fn sync_async(&mut self) -> Result {
        self.queue.submit(&self.context);
        let (reply, tell) = Reply::new();
        self.context.queue.on_submitted_work_done(move || tell(()));
        self.reply(reply).await
    }

    /// What a callback brings. Outside of a browser callbacks come while the device is waited for.
    async fn reply<T>(&self, reply: Reply<T>) -> Result<T> {
        self.context.wait()?;
        let value = reply.await;
        self.context.check()?;
        Ok(value)
    }

    fn refused(&self, error: &dyn std::fmt::Display) -> Fault {
        Fault::Other(format!("{} gives nothing back: {error}", self.context.found.name))
    }
}
