//! What a person sees while an input is packed and uploaded.

use std::path::Path;

use indicatif::{ProgressBar, ProgressStyle};

use crate::console::Console;
use crate::output::human;

/// What is drawn while an input is packed and uploaded, where somebody watches.
pub(super) struct Progress {
    /// The bar, which is hidden where nobody watches.
    pub(super) bar: ProgressBar,
    name: String,
}

impl Progress {
    /// Begins to draw, where somebody watches.
    pub(super) fn new(console: Console, path: &Path) -> Self {
        let name = human::printable(&path.display().to_string());
        if !console.is_watched() {
            return Self { bar: ProgressBar::hidden(), name };
        }
        let bar = ProgressBar::new_spinner().with_message(format!("packing {name}"));
        bar.set_style(
            ProgressStyle::with_template("{spinner} {msg}  {binary_bytes}")
                .expect("the template is constant"),
        );
        Self { bar, name }
    }

    /// Goes on from packing to uploading so many bytes.
    pub(super) fn upload(&self, size: u64) {
        self.bar.reset();
        self.bar.set_length(size);
        self.bar.set_message(format!("uploading {}", self.name));
        self.bar.set_style(
            ProgressStyle::with_template("{msg}  {bar:30} {binary_bytes} of {binary_total_bytes}  {eta}")
                .expect("the template is constant"),
        );
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
