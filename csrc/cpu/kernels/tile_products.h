// Sums of products of tiles, taken one product at a time, so that they run beside the work of vectors.
#pragma once

#include "tiles.h"

namespace antiphon::ANTIPHON_ISA {

// Rows in tiles 4 and 5, columns in 6 and 7, of one or two each; those of the second are `step` elements on.
template <int kRows>
inline void load_rows(const bf16* rows, int64_t step) {
  _tile_loadd(4, rows, 64);
  if constexpr (kRows == 2) _tile_loadd(5, rows + step, 64);
}
template <int kColumns>
inline void load_columns(const bf16* columns, int64_t step) {
  _tile_loadd(6, columns, 64);
  if constexpr (kColumns == 2) _tile_loadd(7, columns + step, 64);
}

// Tiles 0 to 3 += rows times columns, as load_sums says which is whose.
template <int kRows, int kColumns>
inline void multiply_tiles() {
  _tile_dpbf16ps(0, 4, 6);
  if constexpr (kRows == 2) _tile_dpbf16ps(1, 5, 6);
  if constexpr (kColumns == 2) _tile_dpbf16ps(2, 4, 7);
  if constexpr (kColumns == 2 && kRows == 2) _tile_dpbf16ps(3, 5, 7);
}

// One or two tiles of rows times one or two of columns, over `depths` depths of 32, in one to four tiles of sums.
struct TileSum {
  const bf16 *rows, *columns;
  int64_t num_rows, num_columns;
  int64_t row_step, column_step;    // from the first tile to the second
  int64_t next_rows, next_columns;  // to those of the next depth
  int64_t depths, last;             // how many there are, and how much there is of the last one, up to 32
  int64_t ahead, last_ahead;        // where rows are fetched while those of a depth, or of the last, are multiplied
  float* sums;
  int64_t second, pair;             // as load_sums has them
  bool adds;                        // to what is there, else to zero
};

// The sums that work(sum) gives, until it returns false: work.products() products, in `calls` calls of some() or when
// they are to be finished. A Form says which products a depth takes (attention_amx.h).
template <class Form, class Work>
class TileProducts {
 public:
  explicit TileProducts(const Work& work, int64_t calls = 1) : work_(work), products_(work.products()), calls_(calls) {
    more_ = work_(sum_);
  }
  void some() {
    for (credit_ += products_; credit_ >= calls_ && more_; credit_ -= calls_) step();
  }
  void finish() {
    while (more_) step();
  }

 private:
  void step() {
    sum_.num_rows == 2 ? (sum_.num_columns == 2 ? step_of<2, 2>() : step_of<2, 1>())
                       : (sum_.num_columns == 2 ? step_of<1, 2>() : step_of<1, 1>());
  }

  // A product; where a depth takes one alone, which is too little for a step, a sum.
  template <int kRows, int kColumns>
  void step_of() {
    if (depth_ == 0 && product_ == 0)
      sum_.adds ? load_sums<kColumns, kRows>(sum_.sums, sum_.second, sum_.pair) : zero_sums<kColumns, kRows>();
    do {
      const bool ends = depth_ + 1 == sum_.depths;
      if (!product_of<kRows, kColumns>(ends ? Form::products(sum_.last) : Form::kProducts,
                                       ends ? sum_.last_ahead : sum_.ahead))
        return;
    } while (++depth_ < sum_.depths && Form::kProducts == 1);
    if (depth_ < sum_.depths) return;
    depth_ = 0;
    store_sums<kColumns, kRows>(sum_.sums, sum_.second, sum_.pair);
    more_ = work_(sum_);
  }

  // Whether it was the last one of its depth.
  template <int kRows, int kColumns>
  bool product_of(int64_t products, int64_t ahead) {
    for (int64_t i = product_; i < kRows * Form::kPieces; i += products)
      fetch_tile(sum_.rows + ahead + i / Form::kPieces * sum_.row_step + i % Form::kPieces * Form::kTile);
    Form::template product<kRows, kColumns>(product_, products, sum_.rows, sum_.row_step, sum_.columns,
                                            sum_.column_step);
    if (++product_ < products) return false;
    product_ = 0;
    sum_.rows += sum_.next_rows;
    sum_.columns += sum_.next_columns;
    return true;
  }

  Work work_;
  TileSum sum_;
  const int64_t products_, calls_;
  int64_t credit_ = 0, depth_ = 0, product_ = 0;
  bool more_;
};

}  // namespace antiphon::ANTIPHON_ISA
