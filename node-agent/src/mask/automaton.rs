//! Finds any of many texts in a stream, byte by byte (Aho and Corasick, 1975).
//!
//! A state is the longest end of what was read that begins one of the texts. The well-kept crate of the same algorithm does not tell
//! how long that is, and without it every byte would have to wait for as long as the longest text.
//!
//! States are numbered by their depth, and those that follow one stand together in the order of their bytes. So the ways between
//! them need no table: a state takes 21 bytes, and there are some twenty for every byte of a secret.

use std::collections::VecDeque;

/// The state in which nothing has begun.
pub(super) const ROOT: u32 = 0;

/// A text, and whose it is.
pub(super) type Text = (Vec<u8>, u32);

/// The states and the ways between them.
pub(super) struct Automaton {
    states: Vec<State>,
    /// The byte that leads to each state from the one before it.
    bytes: Vec<u8>,
    /// The ways from [`ROOT`], where most bytes of most streams are read.
    first: [u32; 256],
}

#[derive(Clone, Copy)]
struct State {
    /// How many bytes have begun a text.
    depth: u32,
    /// The length of the longest text that ends here; 0 for none.
    longest: u32,
    /// Whose that is.
    owner: u32,
    /// The next shorter end that begins a text.
    shorter: u32,
    /// The first of the states that follow; the last is in front of the first that follows the next state.
    following: u32,
}

impl Automaton {
    /// Finds these texts. None is empty. One that several have is the first one's.
    pub(super) fn new(mut texts: Vec<Text>) -> Self {
        texts.sort_unstable();
        texts.dedup_by(|(text, _), (before, _)| text == before);
        let root = State { depth: 0, longest: 0, owner: 0, shorter: ROOT, following: 0 };
        let mut automaton = Self { states: vec![root], bytes: vec![0], first: [ROOT; 256] };
        // The texts that begin as each state does of which it is not known yet what follows, in the order of the states.
        let mut open = VecDeque::from([&*texts]);
        let mut state = ROOT;
        while let Some(texts) = open.pop_front() {
            automaton.follow(state, texts, &mut open);
            state += 1;
        }
        automaton
    }

    /// Reads a byte.
    pub(super) fn next(&self, mut state: u32, byte: u8) -> u32 {
        loop {
            if state == ROOT {
                return self.first[usize::from(byte)];
            }
            let following = self.following(state);
            if let Ok(at) = self.bytes[following.clone()].binary_search(&byte) {
                return index(following.start + at);
            }
            state = self.states[state as usize].shorter;
        }
    }

    /// How many of the bytes read last begin a text, and how many the longest text has that ends with them.
    pub(super) fn at(&self, state: u32) -> (usize, usize) {
        let State { depth, longest, .. } = self.states[state as usize];
        (depth as usize, longest as usize)
    }

    /// Whose text ends in a state; `None` where none does.
    pub(super) fn owner(&self, state: u32) -> Option<u32> {
        let State { longest, owner, .. } = self.states[state as usize];
        (longest > 0).then_some(owner)
    }

    /// How many bytes it takes.
    #[cfg(test)]
    pub(super) const fn memory(&self) -> usize {
        self.states.capacity() * size_of::<State>() + self.bytes.capacity() + size_of::<Self>()
    }

    /// The states that follow one that is not the root.
    fn following(&self, state: u32) -> std::ops::Range<usize> {
        let end =
            self.states.get(state as usize + 1).map_or(self.states.len(), |next| next.following as usize);
        self.states[state as usize].following as usize..end
    }

    /// Adds the states that follow one. Shorter ends are at states of which that is known already.
    fn follow<'a>(&mut self, state: u32, texts: &'a [Text], open: &mut VecDeque<&'a [Text]>) {
        self.states[state as usize].following = index(self.states.len());
        let State { depth, shorter, .. } = self.states[state as usize];
        let place = depth as usize;
        // The one that ends here is in front of those that go on.
        let ended = texts.partition_point(|(text, _)| text.len() == place);
        let going_on = &texts[ended..];
        for texts in going_on.chunk_by(|(one, _), (other, _)| one[place] == other[place]) {
            let (text, owner) = &texts[0];
            let byte = text[place];
            let shorter = if state == ROOT { ROOT } else { self.next(shorter, byte) };
            let State { longest, owner: inherited, .. } = self.states[shorter as usize];
            let depth = depth + 1;
            let (longest, owner) =
                if text.len() == depth as usize { (depth, *owner) } else { (longest, inherited) };
            let new = index(self.states.len());
            self.states.push(State { depth, longest, owner, shorter, following: 0 });
            self.bytes.push(byte);
            if state == ROOT {
                self.first[usize::from(byte)] = new;
            }
            open.push_back(texts);
        }
    }
}

fn index(state: usize) -> u32 {
    u32::try_from(state).expect("what an attempt is given is far smaller")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_where_the_longest_beginning_and_the_longest_text_end(
            texts in prop::collection::vec(prop::collection::vec(prop::sample::select(b"abc".to_vec()), 1..7), 1..8),
            stream in prop::collection::vec(prop::sample::select(b"abc".to_vec()), 0..60),
        ) {
            let owned = (0..).zip(&texts).map(|(owner, text)| (text.clone(), owner)).collect();
            let automaton = Automaton::new(owned);
            let mut state = ROOT;
            for end in 1..=stream.len() {
                state = automaton.next(state, stream[end - 1]);
                let read = &stream[..end];
                let begun = (0..=end).rev().find(|length| {
                    texts.iter().any(|text| text.starts_with(&read[end - length..]))
                });
                let ended: Vec<&Vec<u8>> = texts.iter().filter(|text| read.ends_with(text)).collect();
                let longest = ended.iter().map(|text| text.len()).max().unwrap_or_default();
                prop_assert_eq!(automaton.at(state), (begun.unwrap_or_default(), longest));
                let owner = texts.iter().position(|text| text.len() == longest && read.ends_with(text));
                prop_assert_eq!(automaton.owner(state).map(|owner| owner as usize), owner);
            }
        }
    }
}
