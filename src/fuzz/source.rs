//! Mistakes from a seed: what is done to bytes whatever they mean.

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

/// Decides everything about one case.
pub(super) struct Source(StdRng);

/// Numbers at which bounds lie.
const BOUNDS: [u64; 16] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x1_0000_0000,
    i64::MAX as u64,
    1 << 63,
    u64::MAX - 1,
    u64::MAX,
    20 << 20,
];

impl Source {
    pub(super) fn new(seed: u64) -> Source {
        Source(StdRng::seed_from_u64(seed))
    }

    pub(super) fn below(&mut self, bound: usize) -> usize {
        self.0.random_range(0..bound.max(1))
    }

    pub(super) fn chance(&mut self, percent: u32) -> bool {
        self.0.random_range(0..100) < percent
    }

    pub(super) fn pick<'p, T>(&mut self, from: &'p [T]) -> &'p T {
        &from[self.below(from.len())]
    }

    /// A number, often one at which a bound lies.
    pub(super) fn number(&mut self) -> u64 {
        if self.chance(70) { *self.pick(&BOUNDS) } else { self.0.random() }
    }

    pub(super) fn byte(&mut self) -> u8 {
        self.0.random()
    }

    /// One to four mistakes in bytes that mean anything.
    pub(super) fn mistakes(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        for _ in 0..=self.below(4) {
            self.mistake(&mut bytes);
        }
        bytes
    }

    fn mistake(&mut self, bytes: &mut Vec<u8>) {
        let at = self.below(bytes.len() + 1);
        match self.below(8) {
            0 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
            1 if at < bytes.len() => bytes[at] = self.byte(),
            2 => bytes.truncate(at),
            3 => {
                let more: Vec<u8> = (0..=self.below(16)).map(|_| self.byte()).collect();
                bytes.splice(at..at, more);
            }
            4 => {
                let end = (at + self.below(64)).min(bytes.len());
                let piece = bytes[at..end].to_vec();
                for _ in 0..=self.below(20) {
                    bytes.splice(at..at, piece.iter().copied());
                }
            }
            5 => {
                let end = (at + self.below(64)).min(bytes.len());
                bytes.drain(at..end);
            }
            6 => {
                let number = self.number().to_le_bytes();
                let width = *self.pick(&[1, 2, 4, 8]);
                let end = (at + width).min(bytes.len());
                bytes.splice(at..end, number[..width].iter().copied());
            }
            _ => {
                let number = self.number().to_be_bytes();
                let width = *self.pick(&[1, 2, 4, 8]);
                let end = (at + width).min(bytes.len());
                bytes.splice(at..end, number[8 - width..].iter().copied());
            }
        }
    }
}
