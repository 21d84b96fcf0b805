// The parts of a DSP48E2 that multiply and add, or add several short numbers, written from its guide.
// Ref: AMD UG579, UltraScale Architecture DSP Slice: figure of the slice's registers, tables
// "INMODE Functions", "OPMODE Control Bits" and "Attribute Settings". Everything that is not
// modelled stops the simulation when it is asked for.
module DSP48E2 #(
    parameter AREG = 1, ACASCREG = 1, DREG = 1, ADREG = 1, BREG = 1, BCASCREG = 1, CREG = 1,
    parameter MREG = 1, PREG = 1, OPMODEREG = 1, INMODEREG = 1, ALUMODEREG = 1, CARRYINREG = 1,
    parameter CARRYINSELREG = 1,
    parameter AMULTSEL = "A", BMULTSEL = "B", PREADDINSEL = "A", A_INPUT = "DIRECT",
    parameter B_INPUT = "DIRECT", USE_MULT = "MULTIPLY", USE_SIMD = "ONE48",
    parameter USE_WIDEXOR = "FALSE", USE_PATTERN_DETECT = "NO_PATDET", parameter [47:0] RND = 0
) (
    input CLK,
    input [29:0] A, input [26:0] D, input [17:0] B, input [47:0] C,
    input [4:0] INMODE, input [8:0] OPMODE, input [3:0] ALUMODE, input CARRYIN,
    input [2:0] CARRYINSEL,
    input [47:0] PCIN, input [29:0] ACIN, input [17:0] BCIN, input CARRYCASCIN, MULTSIGNIN,
    input CEA1, CEA2, CEAD, CEALUMODE, CEB1, CEB2, CEC, CECARRYIN, CECTRL, CED, CEINMODE, CEM, CEP,
    input RSTA, RSTALLCARRYIN, RSTALUMODE, RSTB, RSTC, RSTCTRL, RSTD, RSTINMODE, RSTM, RSTP,
    output [47:0] P, output [47:0] PCOUT
);
    localparam ALONE = USE_MULT == "NONE";  // the adder without the multiplier
    localparam FIELD = USE_SIMD == "FOUR12" ? 12 : USE_SIMD == "TWO24" ? 24 : 48;
    reg signed [29:0] a2;
    reg signed [26:0] d, ad;
    reg signed [17:0] b1, b2;
    reg signed [47:0] c, m, p;
    reg [8:0] opmode;

    // AMULTSEL = "AD": the 27 low bits of A go through the pre-adder.
    wire signed [26:0] pre_a = INMODE[1] ? 27'sd0 : a2[26:0];
    wire signed [26:0] pre_d = INMODE[2] ? d : 27'sd0;
    wire signed [44:0] product = ad * b2;
    wire [47:0] a_b = AREG == 0 ? {A, B} : {a2, b2};
    wire [47:0] c_now = CREG == 0 ? C : c;
    wire [8:0] mode = OPMODEREG == 0 ? OPMODE : opmode;

    reg signed [47:0] x_y, z, w, total;  // where X and Y both select M, together it is the product
    integer at;
    always @* begin
        case (mode[3:0])
            4'b0000: x_y = 0;
            4'b0101: x_y = m;
            4'b0011: x_y = a_b;
            default: x_y = 48'hx;
        endcase
        case (mode[6:4])
            3'b000: z = 0;
            3'b001: z = PCIN;
            3'b010: z = p;
            3'b011: z = c_now;
            default: z = 48'hx;
        endcase
        case (mode[8:7])
            2'b00: w = 0;
            2'b10: w = RND;
            default: w = 48'hx;
        endcase
        for (at = 0; at < 48; at = at + FIELD)
            total[at +: FIELD] = ALUMODE == 4'b0011
                ? z[at +: FIELD] - (w[at +: FIELD] + x_y[at +: FIELD])
                : z[at +: FIELD] + w[at +: FIELD] + x_y[at +: FIELD];
    end

    always @(posedge CLK) begin
        if (CEA2) a2 <= A;  // AREG = 1 leaves A2
        if (CED) d <= D;
        if (CEAD) ad <= INMODE[3] ? pre_d - pre_a : pre_d + pre_a;
        if (CEB1) b1 <= B;
        if (CEB2) b2 <= BREG == 1 ? B : b1;
        if (CEC) c <= C;
        if (CEM) m <= {{3{product[44]}}, product};
        if (CECTRL) opmode <= OPMODE;
        if (CEP) p <= total;
    end
    assign P = p;
    assign PCOUT = p;

    wire multiplies = AREG == 1 && DREG == 1 && ADREG == 1 && BREG == 2 && MREG == 1 && PREG == 1
        && OPMODEREG == 1 && AMULTSEL == "AD" && USE_MULT == "MULTIPLY" && USE_SIMD == "ONE48";
    wire adds = AREG == BREG && AREG == CREG && AREG <= 1 && PREG == 1 && OPMODEREG == 0
        && ALONE && MREG == 0 && DREG == 0 && ADREG == 0;
    initial begin
        if (!(multiplies || adds) || INMODEREG != 0 || ALUMODEREG != 0 || CARRYINREG != 0
            || CARRYINSELREG != 0 || BMULTSEL != "B" || PREADDINSEL != "A"
            || A_INPUT != "DIRECT" || B_INPUT != "DIRECT") begin
            $display("DSP48E2: these attributes are not modelled");
            $stop;
        end
    end
    always @(posedge CLK) begin
        if (INMODE[0] || INMODE[1] || INMODE[4] || (ALUMODE != 0 && (ALUMODE != 3 || !ALONE))
            || CARRYINSEL != 0 || CARRYIN
            || RSTA || RSTALLCARRYIN || RSTALUMODE || RSTB || RSTC || RSTCTRL || RSTD || RSTINMODE
            || RSTM || RSTP) begin
            $display("DSP48E2: this mode is not modelled");
            $stop;
        end
    end
endmodule
