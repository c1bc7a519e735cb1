//! Finds forms in base64 that may be broken into lines.
//!
//! Programs break base64 after a fixed number of digits (`base64` after 76, PEM after 64). A break after just so many digits in a row is
//! read over where a form has begun, so that a form is found wherever its lines begin; any other text has such breaks by chance alone.

use std::collections::VecDeque;

use super::automaton::{Automaton, ROOT};
use super::forms;

/// How far a stream was read.
#[derive(Clone, Debug)]
pub(super) struct Broken {
    state: u32,
    /// Where the digits stand that have begun a form: as many as the state is deep.
    places: VecDeque<usize>,
    /// How many digits in a row were read last.
    digits: usize,
}

impl Broken {
    /// After so many digits in a row, of which none begins a form.
    pub(super) fn after(digits: usize) -> Self {
        Self { state: ROOT, places: VecDeque::new(), digits }
    }

    /// Reads the byte at a place. Gives where what has begun a form begins, and where the longest form begins that ends here; both are
    /// the next place if there is none.
    pub(super) fn read(&mut self, automaton: &Automaton, byte: u8, place: usize) -> (usize, usize) {
        let is_break = matches!(byte, b'\n' | b'\r') && forms::may_break_after(self.digits);
        self.digits = digits_after(self.digits, byte);
        if is_break && self.state != ROOT {
            return (self.places.front().copied().unwrap_or(place), place + 1);
        }
        self.state = automaton.next(self.state, byte);
        let (depth, longest) = automaton.at(self.state);
        self.places.push_back(place);
        self.places.drain(..self.places.len() - depth);
        let from = |digits: usize| self.places.get(depth - digits).copied().unwrap_or(place + 1);
        (from(depth), from(longest))
    }

    /// Which value's form has ended with the last byte, where one has.
    pub(super) fn owner(&self, automaton: &Automaton) -> Option<u32> {
        automaton.owner(self.state)
    }
}

/// How many digits in a row there are after this byte. A carriage return is a part of the break after it.
pub(super) fn digits_after(digits: usize, byte: u8) -> usize {
    match byte {
        b'\r' if forms::may_break_after(digits) => digits,
        byte if forms::is_digit(byte) => digits + 1,
        _ => 0,
    }
}
