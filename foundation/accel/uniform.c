/* Uniform float32 numbers of the Mersenne Twister (Matsumoto and Nishimura 1998): what torch draws, many at once. */
#include <stdint.h>

#define WORDS 624
#define SHIFT 397

/* What a CPU generator's get_state() begins with. */
struct generator {
    uint64_t seed;
    int32_t left, seeded; /* words that are left, and one */
    uint64_t next;
    uint64_t words[WORDS];
};

static inline uint32_t twist(uint32_t high, uint32_t low) {
    uint32_t mixed = (high & 0x80000000u) | (low & 0x7fffffffu);
    return (mixed >> 1) ^ ((low & 1u) ? 0x9908b0dfu : 0u);
}

/* Replace all words by the next ones. A word depends on others at least 227 places away: compilers vectorise this. */
static void refill(uint32_t *word) {
    for (int i = 0; i < WORDS - SHIFT; i++) word[i] = word[i + SHIFT] ^ twist(word[i], word[i + 1]);
    for (int i = WORDS - SHIFT; i < WORDS - 1; i++) word[i] = word[i + SHIFT - WORDS] ^ twist(word[i], word[i + 1]);
    word[WORDS - 1] = word[SHIFT - 1] ^ twist(word[WORDS - 1], word[0]);
}

void uniform_float(struct generator *generator, float *out, long count) {
    uint32_t words[WORDS];
    for (int i = 0; i < WORDS; i++) words[i] = (uint32_t)generator->words[i];
    long left = generator->left;
    long next = (long)generator->next;
    while (count > 0) {
        if (left == 1) {
            refill(words);
            left = WORDS + 1;
            next = 0;
        }
        long most = left - 1 < count ? left - 1 : count;
        for (long i = 0; i < most; i++) {
            uint32_t y = words[next + i];
            y ^= y >> 11;
            y ^= (y << 7) & 0x9d2c5680u;
            y ^= (y << 15) & 0xefc60000u;
            y ^= y >> 18;
            out[i] = (float)(int32_t)(y & 0xffffffu) * 0x1p-24f;
        }
        out += most;
        count -= most;
        next += most;
        left -= most;
    }
    for (int i = 0; i < WORDS; i++) generator->words[i] = words[i];
    generator->left = (int32_t)left;
    generator->next = (uint64_t)next;
}
