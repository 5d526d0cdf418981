# 张量打印：gdb 里 `tensor t`（Tensor）、`qtensor q 行 列`（反量化后的一个元素）、`err e`
define tensor
  printf "shape:"
  set $i = 0
  while $i < ($arg0).n_dims
    printf " %ld", ($arg0).shape[$i]
    set $i = $i + 1
  end
  printf "  dtype: %d  data: %p\n", ($arg0).dtype, ($arg0).data
  if ($arg0).dtype == DT_F32
    output ((float *)($arg0).data)[0]@8
    printf "\n"
  end
end
document tensor
打印 Tensor 的形状、类型与前 8 个元素：tensor t
end

define qtensor
  printf "(%ld, %ld) dense=%d bits=%d group=%ld  [%ld,%ld] = %g\n", ($arg0).rows, ($arg0).cols, ($arg0).dense, ($arg0).spec.bits, ($arg0).spec.group_size, (long)$arg1, (long)$arg2, qtensor_at(&($arg0), $arg1, $arg2)
end
document qtensor
打印存放形式的矩阵的规格与一个元素：qtensor q 行 列
end

define err
  printf "%s: %s\n", err_code_name(($arg0).code), ($arg0).msg
end
document err
打印 Err：err e
end
