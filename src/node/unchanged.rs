//! A file that can be read and seems to be written: what is written stays in memory and is gone with the process.
//! A state that was not closed needs recovery before it can be read; on this it can have it without being changed.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use redb::StorageBackend;

use crate::disk::read_as_much_as_there_is;

/// What is written is kept in pieces of this size, in bytes.
const PIECE_BYTES: u64 = 4096;

/// See the head of the module.
#[derive(Debug)]
pub struct Unchanged {
    file: File,
    written: Mutex<Overlay>,
}

/// What was written over a file, without the file.
#[derive(Debug, Default)]
pub struct Overlay {
    length: u64,
    /// So much of the file below is still to be seen.
    below: u64,
    /// By number; whole pieces.
    pieces: BTreeMap<u64, Vec<u8>>,
}

/// Reads the file below at an offset; answers with how much there was.
pub type ReadBelow<'a> = &'a dyn Fn(&mut [u8], u64) -> io::Result<usize>;

impl Overlay {
    /// Nothing is written yet over a file of this length.
    #[must_use]
    pub fn over(length: u64) -> Overlay {
        Overlay { length, below: length, pieces: BTreeMap::new() }
    }

    /// The length of the whole.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length
    }

    /// One piece as it is below, zeros where nothing is.
    fn piece_below(&self, number: u64, read: ReadBelow<'_>) -> io::Result<Vec<u8>> {
        let mut piece = vec![0; usize::try_from(PIECE_BYTES).expect("small")];
        let start = number * PIECE_BYTES;
        let there = self.below.saturating_sub(start).min(PIECE_BYTES);
        read(&mut piece[..usize::try_from(there).expect("small")], start)?;
        Ok(piece)
    }

    /// Reads all of it.
    ///
    /// # Errors
    /// Beyond the end, and where the file below cannot be read.
    pub fn read(&self, offset: u64, out: &mut [u8], read: ReadBelow<'_>) -> io::Result<()> {
        if offset + out.len() as u64 > self.length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut done = 0;
        while done < out.len() {
            let (number, within, count) = place(offset + done as u64, out.len() - done);
            let target = &mut out[done..done + count];
            match self.pieces.get(&number) {
                Some(piece) => target.copy_from_slice(&piece[within..within + count]),
                None => {
                    target.copy_from_slice(&self.piece_below(number, read)?[within..within + count]);
                }
            }
            done += count;
        }
        Ok(())
    }

    /// Cuts or extends it with zeros.
    pub fn set_length(&mut self, length: u64) {
        if length < self.length {
            self.below = self.below.min(length);
            self.pieces.retain(|number, _| number * PIECE_BYTES < length);
            let (number, within, _) = place(length, 0);
            if let Some(piece) = self.pieces.get_mut(&number) {
                piece[within..].fill(0);
            }
        }
        self.length = length;
    }

    /// Writes all of it, beyond the end if need be.
    ///
    /// # Errors
    /// Where the file below cannot be read.
    pub fn write(&mut self, offset: u64, data: &[u8], read: ReadBelow<'_>) -> io::Result<()> {
        let mut done = 0;
        while done < data.len() {
            let (number, within, count) = place(offset + done as u64, data.len() - done);
            if !self.pieces.contains_key(&number) {
                let piece = self.piece_below(number, read)?;
                self.pieces.insert(number, piece);
            }
            let piece = self.pieces.get_mut(&number).expect("inserted just now");
            piece[within..within + count].copy_from_slice(&data[done..done + count]);
            done += count;
        }
        self.length = self.length.max(offset + data.len() as u64);
        Ok(())
    }
}

impl Unchanged {
    /// Opens an existing file for reading.
    ///
    /// # Errors
    /// From the system.
    pub fn open(path: &Path) -> io::Result<Unchanged> {
        let file = File::open(path)?;
        let written = Mutex::new(Overlay::over(file.metadata()?.len()));
        Ok(Unchanged { file, written })
    }

    fn written(&self) -> MutexGuard<'_, Overlay> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_file(&self, out: &mut [u8], offset: u64) -> io::Result<usize> {
        read_as_much_as_there_is(&self.file, out, offset)
    }
}

/// Number of the piece, where in it, and how much of `left` fits.
fn place(offset: u64, left: usize) -> (u64, usize, usize) {
    let within = usize::try_from(offset % PIECE_BYTES).expect("small");
    let room = usize::try_from(PIECE_BYTES).expect("small") - within;
    (offset / PIECE_BYTES, within, room.min(left))
}

impl StorageBackend for Unchanged {
    fn len(&self) -> io::Result<u64> {
        Ok(self.written().length())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.written().read(offset, out, &|out, offset| self.read_file(out, offset))
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.written().set_length(length);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.written().write(offset, data, &|out, offset| self.read_file(out, offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back_and_the_file_stays_as_it_was() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let before: Vec<u8> = (0..10_000_u32).map(|number| number as u8).collect();
        std::fs::write(&path, &before).unwrap();
        let file = Unchanged::open(&path).unwrap();
        file.set_len(20_000).unwrap();
        file.write(4090, &[0xee; 20]).unwrap();
        file.write(15_000, &[0xdd; 9]).unwrap();
        let mut expected = before.clone();
        expected.resize(20_000, 0);
        expected[4090..4110].fill(0xee);
        expected[15_000..15_009].fill(0xdd);
        let mut whole = vec![0; 20_000];
        file.read(0, &mut whole).unwrap();
        assert_eq!(whole, expected);
        assert!(file.read(19_999, &mut [0; 2]).is_err(), "beyond the end");
        file.set_len(4100).unwrap();
        file.set_len(9000).unwrap();
        expected[4100..].fill(0);
        let mut shorter = vec![0xff; 9000];
        file.read(0, &mut shorter).unwrap();
        assert_eq!(shorter, expected[..9000], "what was cut is gone");
        drop(file);
        assert_eq!(std::fs::read(&path).unwrap(), before);
    }
}
