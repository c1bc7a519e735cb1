//! Finds any of many texts in a stream, byte by byte (Aho and Corasick, 1975).
//!
//! A state is the longest end of what was read that begins one of the texts. The well-kept crate of the same algorithm does not tell
//! how long that is, and without it every byte would have to wait for as long as the longest text.

use std::collections::{HashMap, VecDeque};

/// The state in which nothing has begun.
pub(super) const ROOT: u32 = 0;

/// The states and the ways between them.
pub(super) struct Automaton {
    states: Vec<State>,
    /// Ways that lead deeper.
    deeper: HashMap<(u32, u8), u32>,
    /// The same for [`ROOT`], where most bytes of most streams are read.
    first: [u32; 256],
}

#[derive(Clone, Copy)]
struct State {
    /// How many bytes have begun a text.
    depth: u32,
    /// The length of the longest text that ends here; 0 for none.
    longest: u32,
    /// The next shorter end that begins a text.
    shorter: u32,
}

impl Automaton {
    /// Finds these texts. None is empty.
    pub(super) fn new(texts: &[Vec<u8>]) -> Self {
        let mut automaton = Self {
            states: vec![State { depth: 0, longest: 0, shorter: ROOT }],
            deeper: HashMap::new(),
            first: [ROOT; 256],
        };
        for text in texts {
            automaton.add(text);
        }
        automaton.connect();
        automaton
    }

    /// Reads a byte.
    pub(super) fn next(&self, mut state: u32, byte: u8) -> u32 {
        loop {
            if state == ROOT {
                return self.first[usize::from(byte)];
            }
            if let Some(deeper) = self.deeper.get(&(state, byte)) {
                return *deeper;
            }
            state = self.states[state as usize].shorter;
        }
    }

    /// How many of the bytes read last begin a text, and how many the longest text has that ends with them.
    pub(super) fn at(&self, state: u32) -> (usize, usize) {
        let State { depth, longest, shorter: _ } = self.states[state as usize];
        (depth as usize, longest as usize)
    }

    fn add(&mut self, text: &[u8]) {
        let mut state = ROOT;
        for byte in text {
            let known = match state {
                ROOT => Some(self.first[usize::from(*byte)]).filter(|state| *state != ROOT),
                state => self.deeper.get(&(state, *byte)).copied(),
            };
            state = known.unwrap_or_else(|| {
                let depth = self.states[state as usize].depth + 1;
                let new = u32::try_from(self.states.len()).expect("what an attempt is given is far smaller");
                self.states.push(State { depth, longest: 0, shorter: ROOT });
                match state {
                    ROOT => self.first[usize::from(*byte)] = new,
                    state => drop(self.deeper.insert((state, *byte), new)),
                }
                new
            });
        }
        let end = &mut self.states[state as usize];
        end.longest = end.depth;
    }

    /// Finds the shorter ends, nearest states first.
    fn connect(&mut self) {
        let mut below: HashMap<u32, Vec<(u8, u32)>> = HashMap::new();
        for ((state, byte), deeper) in &self.deeper {
            below.entry(*state).or_default().push((*byte, *deeper));
        }
        let mut queue: VecDeque<u32> = self.first.iter().copied().filter(|state| *state != ROOT).collect();
        while let Some(state) = queue.pop_front() {
            for (byte, deeper) in below.remove(&state).unwrap_or_default() {
                let shorter = self.next(self.states[state as usize].shorter, byte);
                let longest = self.states[shorter as usize].longest;
                let deeper_state = &mut self.states[deeper as usize];
                deeper_state.shorter = shorter;
                deeper_state.longest = deeper_state.longest.max(longest);
                queue.push_back(deeper);
            }
        }
    }
}
