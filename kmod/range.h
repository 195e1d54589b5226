/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Side arrays: a word for each chunk that a fork may park
 *
 * A chunk is what one PTE table maps, 2 MiB. Its word goes
 *
 *	NONE --park--> saved PMD --claim--> BUSY --pull or re-attach--> DONE
 *
 * and is the only lock that a pull takes.
 */
#ifndef _AF_RANGE_H
#define _AF_RANGE_H

#include <linux/atomic.h>
#include <linux/mm.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>

#define AF_WORD_NONE	0UL	/* never parked */
#define AF_WORD_BUSY	1UL	/* a saved PMD is never this small */
#define AF_WORD_DONE	2UL

/**
 * struct af_block - chunks under one PMD table
 * @word:	their words; NULL where there was no table
 * @slot:	the parent's entry of the first; not dereferenced, and valid only as
 *		long as one of them is parked
 */
struct af_block {
	unsigned long *word;
	const pmd_t *slot;
};

/**
 * struct af_range - the parkable part of one VMA, as it was at the fork
 * @start:	first address, chunk aligned
 * @end:	end address, chunk aligned
 * @vm_start:	start of the VMA; above @start in a partial chunk
 * @vm_end:	end of the VMA
 * @first:	number of chunks in the ranges before this one
 * @nr_blocks:	entries of @block
 * @block:	one PMD table each
 */
struct af_range {
	unsigned long start, end;
	unsigned long vm_start, vm_end;
	unsigned long first;
	unsigned long nr_blocks;
	struct af_block block[];
};

/* Ranges by ascending address; only the forking thread adds. */
struct af_ranges {
	struct rcu_head rcu;
	unsigned long nr, max;
	struct af_range *range[];
};

static inline unsigned long af_next_pud(unsigned long addr, unsigned long end)
{
	return min((addr & PUD_MASK) + PUD_SIZE, end);
}

/* Address of the first chunk of a block. */
static inline unsigned long af_block_start(const struct af_range *r,
					   unsigned long block)
{
	return max(r->start, (r->start & PUD_MASK) + (block << PUD_SHIFT));
}

static inline unsigned long af_block_chunks(const struct af_range *r,
					    unsigned long block)
{
	unsigned long start = af_block_start(r, block);

	return (af_next_pud(start, r->end) - start) >> PMD_SHIFT;
}

/* Word of the chunk at @addr (inside @r), NULL where nothing was parked. */
static inline unsigned long *af_range_word(const struct af_range *r,
					   unsigned long addr)
{
	unsigned long block = (addr >> PUD_SHIFT) - (r->start >> PUD_SHIFT);
	unsigned long *word = r->block[block].word;

	return word ? &word[(addr - af_block_start(r, block)) >> PMD_SHIFT] :
		      NULL;
}

/**
 * af_range_step - a step of a walk over the chunks of a range
 * @r: range
 * @addr: address inside it, chunk aligned
 * @next: where the walk goes on: the next chunk, or past a block without words
 *
 * Context: may sleep, once a block.
 * Return: word of the chunk at @addr, NULL where nothing was parked up to @next.
 */
static inline unsigned long *af_range_step(const struct af_range *r,
					   unsigned long addr,
					   unsigned long *next)
{
	unsigned long *word = af_range_word(r, addr);

	if (!word || !(addr & ~PUD_MASK))
		cond_resched();
	*next = word ? addr + PMD_SIZE : af_next_pud(addr, r->end);
	return word;
}

static inline unsigned long af_range_chunks(const struct af_range *r)
{
	return (r->end - r->start) >> PMD_SHIFT;
}

/* Is the chunk parked now, or being pulled? */
static inline bool af_word_pending(const unsigned long *word)
{
	/* Pairs with set_done() in pull.c. */
	unsigned long val = smp_load_acquire(word);

	return val != AF_WORD_NONE && val != AF_WORD_DONE;
}

struct af_range *af_range_alloc(const struct vm_area_struct *vma,
				unsigned long start, unsigned long end,
				u64 *bytes);
void af_range_free(struct af_range *r);
bool af_ranges_add(struct af_ranges __rcu **ranges, struct af_range *r,
		   u64 *bytes);
void af_ranges_free(struct af_ranges *rs);
struct af_range *af_ranges_find(struct af_ranges __rcu **ranges,
				unsigned long addr);
bool af_ranges_find_slot(struct af_ranges __rcu **ranges, const pmd_t *slot,
			 unsigned long *addr);
unsigned long af_ranges_part(const struct af_ranges *rs, unsigned int nr,
			     unsigned int n);

#endif /* _AF_RANGE_H */
