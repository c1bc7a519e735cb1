//! Sealing: AES-256-GCM of `ring`. A sealed text is one byte for the form, the nonce, and the ciphertext with its tag.

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use sha2::{Digest as _, Sha256};

/// The form of a sealed text.
const FORM: u8 = 1;
/// Bytes of a key.
pub(super) const KEY_BYTES: usize = 32;
/// Characters of a key's id.
const ID_LENGTH: usize = 16;

/// A key that seals and opens. It is never shown.
pub(super) struct Key {
    id: String,
    key: LessSafeKey,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Key({})", self.id)
    }
}

impl Key {
    pub(super) fn new(bytes: &[u8; KEY_BYTES]) -> Self {
        let hash = Sha256::new().chain_update("windlass secrets key").chain_update(bytes).finalize();
        let mut id = hex::encode(hash);
        id.truncate(ID_LENGTH);
        let key =
            UnboundKey::new(&AES_256_GCM, bytes).expect("the key has the length that the algorithm takes");
        Self { id, key: LessSafeKey::new(key) }
    }

    /// Names the key and tells nothing of it.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// Seals a text for one place. No nonce may come twice with one key; 96 random bits do not.
    pub(super) fn seal(&self, nonce: [u8; NONCE_LEN], place: &[u8], text: &[u8]) -> Vec<u8> {
        let mut content = text.to_vec();
        self.key
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(place), &mut content)
            .expect("a text of this size can be sealed");
        let mut sealed = Vec::with_capacity(1 + NONCE_LEN + content.len());
        sealed.push(FORM);
        sealed.extend(nonce);
        sealed.extend(content);
        sealed
    }

    /// Opens what this key has sealed for this place; `None` for anything else.
    pub(super) fn open(&self, place: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        let (form, rest) = sealed.split_first()?;
        let (nonce, content) = rest.split_at_checked(NONCE_LEN)?;
        if *form != FORM {
            return None;
        }
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut content = content.to_vec();
        let length = self.key.open_in_place(nonce, Aad::from(place), &mut content).ok()?.len();
        content.truncate(length);
        Some(content)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_key_opens_and_only_in_its_place() {
        let key = Key::new(&[7; KEY_BYTES]);
        let sealed = key.seal([1; NONCE_LEN], b"here", b"text");
        assert_eq!(key.open(b"here", &sealed).as_deref(), Some(b"text".as_slice()));
        assert_eq!(key.open(b"there", &sealed), None);
        assert_eq!(Key::new(&[8; KEY_BYTES]).open(b"here", &sealed), None);
        for at in 0..sealed.len() {
            let mut damaged = sealed.clone();
            damaged[at] ^= 1;
            assert_eq!(key.open(b"here", &damaged), None, "byte {at}");
        }
        for length in 0..sealed.len() {
            assert_eq!(key.open(b"here", &sealed[..length]), None, "{length} bytes");
        }
        assert_eq!(key.id().len(), ID_LENGTH);
        assert_ne!(key.id(), Key::new(&[8; KEY_BYTES]).id());
    }
}
