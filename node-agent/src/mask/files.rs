//! Looks for secrets in files, which may be written in UTF-16.
//!
//! Text that is ASCII, and base64 always is, stands in every second byte there, with zeros between. Those are read by the same
//! automata as everything else, so that UTF-16 needs no states of its own; only the rest of the values does.

use super::{Finder, Mask, Reading};

/// The secrets of one attempt as they are looked for in files. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct FileMask {
    narrow: Mask,
    /// What in UTF-16 is more than ASCII with zeros between.
    wide: Mask,
}

impl FileMask {
    /// Looks for what `mask` masks, which was made of these values.
    pub(crate) fn new<'a>(mask: Mask, values: impl IntoIterator<Item = &'a [u8]>) -> Self {
        Self { narrow: mask, wide: Mask::in_utf_16(values) }
    }

    /// Bytes without secrets.
    pub(crate) fn bytes(&self, bytes: &[u8]) -> Vec<u8> {
        self.wide.bytes(&self.narrow.bytes(bytes))
    }
}

/// Looks for secrets in a file, piece by piece.
#[derive(Debug)]
pub(crate) struct FileFinder {
    is_idle: bool,
    plain: Finder,
    wide: Finder,
    /// The bytes in even places and those in odd ones, while zeros are between them.
    every_second: [EverySecond; 2],
    /// The two bytes that were read last, the later one first.
    before: [Option<u8>; 2],
    is_odd: bool,
}

#[derive(Debug)]
struct EverySecond {
    finder: Finder,
    /// It has read the last byte of its own.
    follows: bool,
}

impl FileFinder {
    /// At the beginning of a file.
    pub(crate) fn new(mask: &FileMask) -> Self {
        let FileMask { narrow, wide } = mask;
        let every_second = || EverySecond { finder: Finder::new(narrow.clone()), follows: false };
        Self {
            // What has a wide form has others as well.
            is_idle: narrow.is_nothing(),
            plain: Finder::new(narrow.clone()),
            wide: Finder::new(wide.clone()),
            every_second: [every_second(), every_second()],
            before: [None; 2],
            is_odd: false,
        }
    }

    /// Takes a piece. Tells of which value a form has ended in it first, wherever it has begun.
    pub(crate) fn finds(&mut self, piece: &[u8]) -> Option<u32> {
        if self.is_idle {
            return None;
        }
        piece.iter().find_map(|byte| self.read(*byte))
    }

    fn read(&mut self, byte: u8) -> Option<u32> {
        let [last, earlier] = self.before;
        let own = &mut self.every_second[usize::from(self.is_odd)];
        let found = if last == Some(0) {
            let first = if own.follows { None } else { own.begin(earlier) };
            first.or_else(|| own.finder.read(byte))
        } else {
            own.follows = false;
            None
        };
        self.before = [Some(byte), last];
        self.is_odd = !self.is_odd;
        self.plain.read(byte).or_else(|| self.wide.read(byte)).or(found)
    }
}

impl EverySecond {
    /// Begins anew with a byte after which the first zero was.
    fn begin(&mut self, byte: Option<u8>) -> Option<u32> {
        self.follows = true;
        self.finder.reading = Reading::after(0);
        self.finder.read(byte?)
    }
}
