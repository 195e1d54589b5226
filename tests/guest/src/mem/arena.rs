// SPDX-License-Identifier: MIT OR Apache-2.0
//! Memory with a model of what every page of it must hold.

use super::{pattern, probe, Span, CHUNK, CHUNK_PAGES, PAGE, PAGE_WORDS};
use crate::rng::Rng;
use crate::verdict::{TestResult, Verdict};
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

/// What a page must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// The pattern of this key.
    Key(u64),
    /// Zeros.
    Zero,
    /// The pattern of this key or zeros: MADV_FREE was given.
    KeyOrZero(u64),
    /// A load must fault: not mapped, or not readable.
    Fault,
}

/// Where an arena's pages lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// One mapping of this many MiB that starts and ends at a chunk.
    Whole(usize),
    /// This many chunks, each with a mapping of a few pages somewhere inside and nothing else: parkable with
    /// `park_partial` only.
    Partial(usize),
}

/// A private anonymous mapping and the model of its contents.
#[derive(Clone, Debug)]
pub struct Arena {
    span: Span,
    seed: u64,
    want: Vec<Want>,
    /// Single words that differ from the page's pattern: page -> (word, value).
    patches: BTreeMap<usize, Vec<(usize, u64)>>,
    /// Mapped pages, as ranges.
    pieces: Vec<Range<usize>>,
}

impl Arena {
    /// A whole arena of `mib` MiB of small pages, filled with generation 0.
    pub fn new(rng: &mut Rng, mib: usize) -> io::Result<Self> {
        Self::shaped(rng, Shape::Whole(mib))
    }

    /// An arena of small pages, filled with generation 0.
    pub fn shaped(rng: &mut Rng, shape: Shape) -> io::Result<Self> {
        let mut arena = Self::planned(rng, shape)?;
        arena.map()?;
        arena.fill(0);
        Ok(arena)
    }

    /// The address range and an all-`Fault` model, nothing mapped yet.
    pub fn planned(rng: &mut Rng, shape: Shape) -> io::Result<Self> {
        let seed = rng.next();
        let (span, pieces) = match shape {
            Shape::Whole(mib) => {
                let span = Span::reserve(mib << 20)?;
                (span, std::iter::once(0..span.pages()).collect())
            }
            Shape::Partial(chunks) => {
                let span = Span::reserve(chunks * CHUNK)?;
                span.unmap()?;
                let pieces = (0..chunks)
                    .map(|c| {
                        let r = rng.range(CHUNK_PAGES, CHUNK_PAGES - 2);
                        // Never the whole chunk, and no two pieces in touch.
                        let r =
                            r.start.max(1)..r.end.clamp(2, CHUNK_PAGES - 1).max(r.start.max(1) + 1);
                        c * CHUNK_PAGES + r.start..c * CHUNK_PAGES + r.end
                    })
                    .collect();
                (span, pieces)
            }
        };
        let want = vec![Want::Fault; span.pages()];
        Ok(Self {
            span,
            seed,
            want,
            patches: BTreeMap::new(),
            pieces,
        })
    }

    /// An arena over a span that is mapped already: every page is `want`.
    pub fn adopt(rng: &mut Rng, span: Span, want: Want) -> Self {
        Self {
            span,
            seed: rng.next(),
            want: vec![want; span.pages()],
            patches: BTreeMap::new(),
            pieces: std::iter::once(0..span.pages()).collect(),
        }
    }

    /// Maps the pieces: private, anonymous, writable, no huge pages.
    pub fn map(&mut self) -> io::Result<()> {
        for piece in self.pieces.clone() {
            let span = self.span.page_range(piece.clone());
            span.map(
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_NORESERVE,
            )?;
            span.advise(libc::MADV_NOHUGEPAGE)?;
            self.expect(piece, Want::Zero);
        }
        Ok(())
    }

    /// The address range.
    pub fn span(&self) -> Span {
        self.span
    }

    /// Number of pages, mapped or not.
    pub fn pages(&self) -> usize {
        self.span.pages()
    }

    /// Number of chunks the range covers whole.
    pub fn chunks(&self) -> u64 {
        let start = self.span.addr().next_multiple_of(CHUNK);
        (self.span.end().saturating_sub(start) / CHUNK) as u64
    }

    /// Mapped ranges of pages.
    pub fn pieces(&self) -> Vec<Range<usize>> {
        self.pieces.clone()
    }

    /// Mapped ranges as spans.
    pub fn piece_spans(&self) -> Vec<Span> {
        self.pieces
            .iter()
            .map(|p| self.span.page_range(p.clone()))
            .collect()
    }

    /// The pages of chunk `c`.
    pub fn chunk(&self, c: usize) -> Range<usize> {
        c * CHUNK_PAGES..(c + 1) * CHUNK_PAGES
    }

    /// Address range of pages.
    pub fn part(&self, pages: Range<usize>) -> Span {
        self.span.page_range(pages)
    }

    /// The key of generation `gen` of page `page`.
    pub fn key(&self, page: usize, gen: u32) -> u64 {
        pattern::key(self.seed, page, gen)
    }

    /// What page `page` must hold.
    pub fn want(&self, page: usize) -> Want {
        self.want[page]
    }

    /// Changes the model only.
    pub fn expect(&mut self, pages: Range<usize>, want: Want) {
        for page in pages {
            self.want[page] = want;
            self.patches.remove(&page);
        }
    }

    /// Changes the model only: `pages` hold generation `gen`.
    pub fn expect_gen(&mut self, pages: Range<usize>, gen: u32) {
        for page in pages {
            self.expect(page..page + 1, Want::Key(self.key(page, gen)));
        }
    }

    /// Changes the model only: the word at byte offset `off` of page `page` is `value`.
    pub fn expect_word(&mut self, page: usize, off: usize, value: u64) {
        self.patches.entry(page).or_default().push((off / 8, value));
    }

    /// Whether single words of page `page` differ from its pattern.
    pub fn is_patched(&self, page: usize) -> bool {
        self.patches.contains_key(&page)
    }

    /// Writes generation `gen` over one page.
    pub fn write(&mut self, page: usize, gen: u32) {
        let key = self.key(page, gen);
        pattern::fill(self.span.page(page), key);
        self.expect(page..page + 1, Want::Key(key));
    }

    /// Writes generation `gen` over pages.
    pub fn write_range(&mut self, pages: Range<usize>, gen: u32) {
        for page in pages {
            self.write(page, gen);
        }
    }

    /// Writes generation `gen` over every mapped page.
    pub fn fill(&mut self, gen: u32) {
        for piece in self.pieces() {
            self.write_range(piece, gen);
        }
    }

    /// The mapped pages in random order.
    pub fn shuffled(&self, rng: &mut Rng) -> Vec<usize> {
        let pages: Vec<usize> = self.pieces.iter().cloned().flatten().collect();
        rng.shuffled(pages.len())
            .into_iter()
            .map(|i| pages[i])
            .collect()
    }

    /// Writes generation 1 to every `nth` mapped page, in random order.
    pub fn write_every(&mut self, nth: usize, rng: &mut Rng) {
        for page in self.shuffled(rng).into_iter().step_by(nth) {
            self.write(page, 1);
        }
    }

    /// A random range within one of the mapped pieces.
    pub fn some_range(&self, rng: &mut Rng, max: usize) -> Range<usize> {
        let piece = &self.pieces[rng.below(self.pieces.len())];
        let range = rng.range(piece.len(), max);
        piece.start + range.start..piece.start + range.end
    }

    /// The bytes of generation `gen` of a page, to be written by other means.
    pub fn bytes(&self, page: usize, gen: u32) -> Vec<u8> {
        pattern::words(self.key(page, gen))
            .iter()
            .flat_map(|w| w.to_ne_bytes())
            .collect()
    }

    /// Takes the mapping of `pages` out of this arena; what is left there must fault.
    pub fn unmapped(&mut self, pages: Range<usize>) {
        self.expect(pages.clone(), Want::Fault);
        self.pieces = std::mem::take(&mut self.pieces)
            .into_iter()
            .flat_map(|p| {
                [
                    p.start..p.end.min(pages.start.max(p.start)),
                    p.start.max(pages.end.min(p.end))..p.end,
                ]
            })
            .filter(|p| !p.is_empty())
            .collect();
    }

    /// The model of `pages`, now at `to` (mremap).
    pub fn moved(&self, pages: Range<usize>, to: Span) -> Self {
        assert_eq!(pages.len(), to.pages());
        Self {
            span: to,
            seed: self.seed,
            want: self.want[pages.clone()].to_vec(),
            patches: self
                .patches
                .range(pages.clone())
                .map(|(p, v)| (p - pages.start, v.clone()))
                .collect(),
            pieces: std::iter::once(0..to.pages()).collect(),
        }
    }

    /// Compares every page of this process with the model.
    pub fn verify(&self) -> TestResult {
        for page in 0..self.pages() {
            self.verify_page(page)?;
        }
        Ok(())
    }

    fn verify_page(&self, page: usize) -> TestResult {
        let span = self.span.page(page);
        let want = self.want[page];
        match want {
            Want::Fault if probe::readable(span) => {
                return Err(Verdict::Failed(format!(
                    "{}: readable, want a fault",
                    self.place(page)
                )))
            }
            Want::Fault => return Ok(()),
            _ => {}
        }
        if !probe::readable(span) {
            return Err(Verdict::Failed(format!(
                "{}: a load faults, want {want:?}",
                self.place(page)
            )));
        }
        if let (Want::Key(key), None) = (want, self.patches.get(&page)) {
            if pattern::mismatch(span, key).is_none() {
                return Ok(());
            }
        }
        let read = || (0..PAGE_WORDS).map(|w| span.load(w * 8)).collect();
        self.verify_words(page, || Ok(read()))
    }

    /// Compares every page with the model, reading the arena's address range through `read` (another process's memory, a
    /// core file). Pages that must fault are not read.
    pub fn verify_through(
        &self,
        mut read: impl FnMut(usize, &mut [u8]) -> io::Result<()>,
    ) -> TestResult {
        let mut buf = vec![0u8; PAGE];
        for page in 0..self.pages() {
            if matches!(self.want[page], Want::Fault) {
                continue;
            }
            let addr = self.span.page(page).addr();
            self.verify_words(page, || {
                read(addr, &mut buf).map_err(|e| {
                    Verdict::Failed(format!(
                        "{}: cannot be read from outside: {e}",
                        self.place(page)
                    ))
                })?;
                Ok(buf
                    .chunks_exact(8)
                    .map(|b| u64::from_ne_bytes(b.try_into().expect("eight bytes")))
                    .collect())
            })?;
        }
        Ok(())
    }

    /// The words that page `page` must hold, for each thing that is allowed.
    fn allowed(&self, page: usize) -> Vec<Vec<u64>> {
        let mut all = match self.want[page] {
            Want::Key(key) => vec![pattern::words(key).to_vec()],
            Want::Zero => vec![vec![0; PAGE_WORDS]],
            Want::KeyOrZero(key) => vec![pattern::words(key).to_vec(), vec![0; PAGE_WORDS]],
            Want::Fault => vec![],
        };
        for words in &mut all {
            for &(word, value) in self.patches.get(&page).into_iter().flatten() {
                words[word] = value;
            }
        }
        all
    }

    fn verify_words(
        &self,
        page: usize,
        mut read: impl FnMut() -> TestResult<Vec<u64>>,
    ) -> TestResult {
        let allowed = self.allowed(page);
        let mut got = read()?;
        let freed = matches!(self.want[page], Want::KeyOrZero(_));
        if freed && !allowed.contains(&got) && discarded_between(&allowed[0], &got) {
            got = read()?;
        }
        if allowed.contains(&got) {
            return Ok(());
        }
        let want = &allowed[0];
        let word = (0..PAGE_WORDS).find(|&w| want[w] != got[w]).unwrap_or(0);
        Err(Verdict::Failed(format!(
            "{}+{:#x}: got {:#018x}, want {:#018x} ({:?}); {}",
            self.place(page),
            word * 8,
            got[word],
            want[word],
            self.want[page],
            self.explain(&got),
        )))
    }

    fn place(&self, page: usize) -> String {
        let addr = self.span.page(page).addr();
        let chunk = addr / CHUNK - self.span.addr() / CHUNK;
        format!("page {page} at {addr:#x}, chunk {chunk}")
    }

    /// Says whose contents these are, if it is known.
    fn explain(&self, got: &[u64]) -> String {
        if got.iter().all(|&w| w == 0) {
            return "the page is all zero".into();
        }
        for gen in 0..8 {
            for page in 0..self.pages() {
                if self.key(page, gen) == got[0] {
                    return format!("the page starts like generation {gen} of page {page}");
                }
            }
        }
        "the page starts like no page of this arena".into()
    }
}

/// Whether a page was read, from its start to its end, while the kernel took it back after MADV_FREE: first its contents, then
/// zeroes. It stays zero.
fn discarded_between(want: &[u64], got: &[u64]) -> bool {
    let kept = want.iter().zip(got).take_while(|(w, g)| w == g).count();
    got[kept..].iter().all(|&word| word == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_discarded_while_it_is_read_is_not_torn() {
        let mut arena = Arena::new(&mut Rng::new(1, "discarded"), 2).unwrap();
        arena.fill(0);
        let Want::Key(key) = arena.want(3) else {
            panic!("page 3 holds {:?}", arena.want(3));
        };
        let whole = pattern::words(key).to_vec();
        let zero = vec![0; PAGE_WORDS];
        let mut half = whole.clone();
        half[112..].fill(0);
        // What a first and a second read find.
        let verify = |arena: &Arena, first: &Vec<u64>, second: &Vec<u64>| {
            let mut reads = [first, second].into_iter();
            arena.verify_words(3, || Ok(reads.next().unwrap().clone()))
        };
        assert!(verify(&arena, &half, &zero).is_err(), "it was never freed");
        arena.expect(3..4, Want::KeyOrZero(key));
        assert!(verify(&arena, &half, &zero).is_ok());
        assert!(verify(&arena, &whole, &half).is_ok());
        assert!(verify(&arena, &half, &half).is_err(), "it stays torn");
        half[200] = 7;
        assert!(verify(&arena, &half, &zero).is_err(), "not its contents");
    }
}
